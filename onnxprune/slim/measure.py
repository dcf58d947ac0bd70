"""What removing units costs: the order in which those of each group go, and how far the output moves.

One walk through the dense model. Each reader of a group gives the second moments of its inputs; its own
best units are removed at a few levels, its weight re-fitted, and the model's output compared with the dense
one. That says what a unit of relative error is worth there; the order of a group is then the best for all of
its readers together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.effect import Effects
from onnxprune.allocation.walk import walk
from onnxprune.attention.guide import NOTHING, Guide
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import Streams
from onnxprune.model import Model
from onnxprune.slim.damage import scaled
from onnxprune.slim.readers import Reader
from onnxprune.solvers import unfitted
from onnxprune.solvers.layer import Solution, dense_matrix, ridge
from onnxprune.solvers.reconstruct import bias_shift
from onnxprune.solvers.units import Consumer, Order, by_size, removal_order, without
from onnxprune.structure.groups import Group

Floats = NDArray[np.float64]
LEVELS = (0.25, 0.5)  # shares of the units whose removal is tried on the whole model
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
class _Seen:
    """What the walk leaves of one reader: its matrices, and (error, divergence) at the levels."""

    reader: Reader
    consumers: list[Consumer]
    order: Order | None = None  # the best for this reader alone
    points: list[tuple[float, float]] = field(default_factory=list)
    refit: bool = True

    @property
    def energy(self) -> float:
        return sum(consumer.energy for consumer in self.consumers) or 1.0


def measure(
    dense: Model,
    groups: Sequence[Group],
    readers: Sequence[Reader],
    streams: Streams,
    masks: Sequence[NDArray[np.bool_] | None],
    probes: Sequence[int],
    *,
    damping: float,
    seed: int,
    criterion: str = "obs",
    outputs: bool = True,
    guide: Guide = NOTHING,
    refit: bool = True,
    levels: tuple[float, ...] = LEVELS,
    on_layer: Callable[[str], None] = lambda name: None,
) -> list[Narrowing]:
    """Order the units of every group that has readers.

    Args:
        dense: the model.
        groups: what may go.
        readers: of these groups.
        streams: one stream (dense) over the calibration batches, not advanced yet.
        masks: per batch, which tokens are real.
        probes: batches that outputs are compared on; the others give the statistics.
        damping: ridge, as a share of the mean diagonal of H.
        seed: of the choice of rows.
        criterion: obs, wanda or magnitude.
        outputs: False judges by the readers' own errors only.
        guide: which tokens and heads count more than others.
        refit: whether what stays will be re-fitted.
        levels: shares of the units whose removal is tried.
        on_layer: called after each reader.
    """
    fit = [number for number in range(streams.size) if number not in set(probes)] or list(range(streams.size))
    units = {group.name: group.units for group in groups}
    layers = list({reader.layer.name: reader.layer for reader in readers}.values())
    seen: dict[str, list[_Seen]] = {}
    with Effects(dense, streams, masks, probes, on_layer) as effects:
        for stage, moments in walk(dense, layers, streams, masks, seed=seed, batches=fit, guide=guide):
            if stage.site or not isinstance(moments, Moments):
                continue
            making = effects.rest_of(stage) if outputs else None
            candidates = {}
            for layer in stage.layers:
                own = [reader for reader in readers if reader.layer is layer]
                seen[layer.name], candidates[layer.name] = _look(
                    dense, own, moments, units, damping, levels, criterion, refit
                )
            effects.measure(making, stage.layers, candidates)
    for name, divergences in effects.found.items():
        _attach(seen[name], divergences, len(levels))
    by_group: dict[str, list[_Seen]] = {}
    for item in (item for items in seen.values() for item in items):
        by_group.setdefault(item.reader.group, []).append(item)
    return [
        _narrowing(group, by_group[group.name], criterion, emphasis(group, guide))
        for group in groups
        if group.name in by_group
    ]


def _look(
    dense: Model,
    readers: Sequence[Reader],
    moments: Moments,
    units: Mapping[str, int],
    damping: float,
    levels: Sequence[float],
    criterion: str,
    refit: bool,
) -> tuple[list[_Seen], list[Solution]]:
    """Return what one layer's readers see, and the layer without their own best units at each level."""
    layer = readers[0].layer
    biased = layer.bias is not None and refit  # and so takes up the means
    H, _, _ = moments.centred(layer.name, biased)
    share, W = ridge(moments, H, damping), dense_matrix(dense, layer)
    Q = np.einsum("goi,goj->gij", W.astype(np.float64), W.astype(np.float64), optimize=True)
    found, solutions = [], []
    for reader in readers:
        consumers = [
            Consumer(Q[g], np.asarray(H[g], np.float64), reader.unit[g], 1.0, share) for g in range(len(W))
        ]
        item = _Seen(reader, consumers, refit=refit)
        found.append(item)
        order = item.order = _order([item], units[reader.group], criterion)
        for level in levels:
            count = min(max(1, round(level * units[reader.group])), len(order.units))
            gone = np.isin(reader.unit, order.units[:count])
            weight = without(W, H, gone, share) if refit else np.where(gone[:, None, :], 0, W)
            error = float(order.costs[:, count].sum()) / item.energy
            shift = bias_shift(moments, layer.name, W, weight).ravel() if biased else None
            item.points.append((error, np.nan))
            solutions.append(Solution(weight, 0, shift, error, share))
    return found, solutions


def _attach(items: Sequence[_Seen], divergences: Sequence[float], each: int) -> None:
    """Put what the model's output did beside the errors of the readers of one layer."""
    for k, item in enumerate(items):
        found = divergences[k * each : (k + 1) * each]
        if found:
            item.points = [(e, d) for (e, _), d in zip(item.points, found, strict=True)]


def _order(items: Sequence[_Seen], units: int, criterion: str, factors: Floats | None = None) -> Order:
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


def _narrowing(
    group: Group, items: Sequence[_Seen], criterion: str, factors: Floats | None = None
) -> Narrowing:
    """Order the units for all readers together, each weighed by what its errors do to the output."""
    order = items[0].order
    if order is None or len(items) > 1 or factors is not None:
        order = _order([_weighed(item) for item in items], group.units, criterion, factors)
    damage, mean, row = np.zeros(len(order.units) + 1), np.zeros(len(order.units) + 1), 0
    for item in items:
        own = order.costs[row : row + len(item.consumers)].sum(0) / item.energy
        row += len(item.consumers)
        damage += scaled(own, item.points)
        mean += own / len(items)
    return Narrowing(group, order.units, damage, mean)


def _weighed(item: _Seen) -> _Seen:
    """Return what a reader sees, its errors weighed by what they do to the output."""
    error, moved = item.points[0]
    weight = 1.0 if np.isnan(moved) else moved / max(error, 1e-12)
    consumers = [replace(consumer, weight=weight / item.energy) for consumer in item.consumers]
    return _Seen(item.reader, consumers, item.order, item.points, item.refit)


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
