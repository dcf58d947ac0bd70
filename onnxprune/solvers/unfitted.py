"""Which units to remove when nothing makes up for them: what goes is what the outputs lose.

Without a re-fit the squared output error of removing the columns S is ``tr(W_S H_SS W_S^T)``: a sum over
pairs of units, so that each unit's cost depends on those gone before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.solvers.units import Consumer, Order

Floats = NDArray[np.float64]
Index = NDArray[np.int64]


def removal_order(
    consumers: Sequence[Consumer], units: int, least: int = 1, *, emphasis: Floats | None = None
) -> Order:
    """Remove units one by one, always the one whose going adds least to the error.

    Args:
        consumers: who reads the units; their H must not be centred, as no bias takes up a mean.
        units: how many there are.
        least: how many stay.
        emphasis: (units,) factors of what each unit costs alone, in the choice only.
    """
    shared = np.zeros((units, units))
    for consumer in consumers:
        shared += consumer.weight * pairs(consumer, units)
    own, left = shared.diagonal(), np.ones(units, dtype=bool)
    # What a unit adds can be below 0 beside others, so that its own cost is what a factor is of
    price = own.copy() if emphasis is None else own * emphasis
    gone: list[int] = []
    while len(gone) < units - least:
        unit = int(np.argmin(np.where(left, price, np.inf)))
        gone.append(unit)
        left[unit] = False
        price += 2.0 * shared[unit]
    order = np.array(gone, dtype=np.int64)
    return Order(order, costs_of(consumers, order, units))


def costs_of(consumers: Sequence[Consumer], order: Index, units: int) -> Floats:
    """Return the costs (consumers, len(order) + 1) when units go in the given order."""
    found = np.zeros((len(consumers), len(order) + 1))
    for row, consumer in zip(found, consumers, strict=True):
        table = pairs(consumer, units)[np.ix_(order, order)]
        row[1:] = np.maximum(np.cumsum(2.0 * np.tril(table).sum(1) - table.diagonal()), 0.0)
    return found


def pairs(consumer: Consumer, units: int) -> Floats:
    """Return what each pair of units adds to the squared output of a consumer: (units, units)."""
    owned = consumer.unit >= 0
    product = (consumer.Q * consumer.H)[np.ix_(owned, owned)]
    rows = np.zeros((units, product.shape[1]))
    np.add.at(rows, consumer.unit[owned], product)
    found = np.zeros((units, units))
    np.add.at(found, consumer.unit[owned], rows.T)
    return found
