"""In which order the units of a group go, from what each of its readers saw of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.attention.guide import Guide
from onnxprune.slim.damage import scaled
from onnxprune.slim.readers import Reader
from onnxprune.solvers import unfitted
from onnxprune.solvers.units import Consumer, Order, by_size, removal_order
from onnxprune.structure.groups import Group

Floats = NDArray[np.float64]
FEWEST = 16  # of n units, n / FEWEST stay at least


@dataclass(frozen=True)
class Narrowing:
    """What is known of one group.

    Attributes:
        group: the group.
        units: (k,) in which order its units go.
        damage: (k + 1,) what it costs when the first 0, 1, ... k are gone: divergence of the model's output
            where that was measured, else relative error of the readers' outputs.
        error: (k + 1,) mean relative squared error of the readers' outputs.
    """

    group: Group
    units: NDArray[np.int64]
    damage: Floats
    error: Floats


@dataclass
class Seen:
    """What the walk leaves of one reader: its matrices, and (error, divergence) at the levels."""

    reader: Reader
    consumers: list[Consumer]
    order: Order | None = None  # the best for this reader alone
    points: list[tuple[float, float]] = field(default_factory=list)
    refit: bool = True

    @property
    def energy(self) -> float:
        """Squared output of the reader, which errors are held against."""
        return sum(consumer.energy for consumer in self.consumers) or 1.0


def narrowing(
    group: Group, items: Sequence[Seen], criterion: str, factors: Floats | None = None
) -> Narrowing:
    """Order the units for all readers together, each weighed by what its errors do to the output."""
    order = items[0].order
    if order is None or len(items) > 1 or factors is not None:
        order = order_of([_weighed(item) for item in items], group.units, criterion, factors)
    damage, mean, row = np.zeros(len(order.units) + 1), np.zeros(len(order.units) + 1), 0
    for item in items:
        own = order.costs[row : row + len(item.consumers)].sum(0) / item.energy
        row += len(item.consumers)
        damage += scaled(own, item.points)
        mean += own / len(items)
    return Narrowing(group, order.units, damage, mean)


def order_of(items: Sequence[Seen], units: int, criterion: str, factors: Floats | None = None) -> Order:
    """Return the order in which units go, and what that costs each matrix.

    Args:
        items: what the readers saw.
        units: how many there are.
        criterion: obs, wanda or magnitude.
        factors: (units,) of what each unit counts; None: all alike.

    Raises:
        ValueError: for another criterion.
    """
    consumers = [consumer for item in items for consumer in item.consumers]
    least = max(1, round(units / FEWEST))
    refit = items[0].refit
    if criterion == "obs":
        if not refit:
            return unfitted.removal_order(consumers, units, least, emphasis=factors)
        return removal_order(consumers, units, least, emphasis=factors)
    if criterion not in ("wanda", "magnitude"):
        raise ValueError(f"criterion {criterion!r} orders no units")
    order = by_size(consumers, units, least, inputs=criterion == "wanda")
    return order if refit else Order(order.units, unfitted.costs_of(consumers, order.units, units))


def _weighed(item: Seen) -> Seen:
    """Return what a reader sees, its errors weighed by what they do to the output."""
    error, moved = item.points[0]
    weight = 1.0 if np.isnan(moved) else moved / max(error, 1e-12)
    consumers = [replace(consumer, weight=weight / item.energy) for consumer in item.consumers]
    return Seen(item.reader, consumers, item.order, item.points, item.refit)


def emphasis(group: Group, guide: Guide) -> Floats | None:
    """Return how much each unit counts by what attention says of the rows that make it; None for alike."""
    factors = []
    for part in group.producers:
        rows = guide.rows.get(part.tensor)
        if rows is not None and rows.size == len(part.index):
            owned = part.index >= 0
            sums = np.bincount(part.index[owned], rows.ravel()[owned], minlength=group.units)
            factors.append(sums / np.maximum(np.bincount(part.index[owned], minlength=group.units), 1))
    return np.mean(factors, axis=0) if factors else None
