"""Which units to remove, in which order: structured OBS with exact updates.

A unit (a channel, a neuron, an attention head) is a block of columns in each matrix that reads it. When the
block goes and least squares re-fits the columns that stay, the output error grows by
``tr(W_u [(H^-1)_uu]^-1 W_u^T)``; both W and H^-1 are then updated, so that the next unit is judged on the
matrix that is left. Source: Kurtic et al., "ZipLM: Inference-Aware Structured Pruning of Language Models"
(2023); for single weights Hassibi & Stork, "Second order derivatives for network pruning: Optimal Brain
Surgeon" (1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.solvers.linalg import inverse_hessian, solve_damped

Floats = NDArray[np.float64]
Index = NDArray[np.int64]

# Of n units that are left, the n / ROUND cheapest go at once: 1536 neurons take 250 updates instead of 1536.
# Beyond so many columns fewer rounds are made, since each touches the whole of two matrices.
ROUND, LEAST_ROUND, COLUMNS = 64, 12, 1024


@dataclass(frozen=True)
class Consumer:
    """A matrix whose columns belong to units.

    Attributes:
        Q: (n, n) ``W^T W`` of its weight (out_features, n): all that the costs need to know of it.
        H: (n, n) second moments of its inputs, per row.
        unit: (n,) unit of each column, -1 for columns that stay whatever happens.
        weight: what a unit of squared output error counts beside those of other consumers.
        ridge: added to H, as a share of its mean diagonal.
    """

    Q: Floats
    H: Floats
    unit: Index
    weight: float = 1.0
    ridge: float = 0.01

    @property
    def energy(self) -> float:
        """Squared output ``tr(W H W^T)``, which errors may be held against."""
        return float(np.einsum("ij,ij->", self.Q, self.H))


@dataclass(frozen=True)
class Order:
    """In which order units go, and what that costs.

    Attributes:
        units: (k,) the first to go first; the cheapest ones when only some may go.
        costs: (consumers, k + 1) squared output error of each consumer when the first 0, 1, ... k units are
            gone and the rest is re-fitted; without the consumers' weights.
    """

    units: Index
    costs: Floats


def removal_order(
    consumers: Sequence[Consumer],
    units: int,
    least: int = 1,
    *,
    emphasis: Floats | None = None,
    rounds: int | None = None,
) -> Order:
    """Remove units one by one, always those whose going costs the consumers least.

    Args:
        consumers: who reads the units.
        units: how many there are.
        least: how many stay.
        emphasis: (units,) factors of what each unit costs, in the choice alone.
        rounds: of n units left, n / rounds go at once; None: by the size of the matrices.

    Raises:
        ModelError: when the statistics cannot be inverted.
    """
    eliminations = [Elimination(consumer) for consumer in consumers]
    if rounds is None:
        columns = max((len(consumer.Q) for consumer in consumers), default=1)
        rounds = max(LEAST_ROUND, min(ROUND, ROUND * COLUMNS // columns))
    weights = np.array([consumer.weight for consumer in consumers])
    left = np.arange(units)
    gone: list[int] = []
    costs = [np.zeros(len(consumers))]
    while len(left) > least:
        price = np.zeros(len(left))
        for weight, elimination in zip(weights, eliminations, strict=True):
            price += weight * elimination.costs(left)
        price = price if emphasis is None else price * emphasis[left]
        count = min(max(1, len(left) // rounds), len(left) - least)
        chosen = np.argsort(price, kind="stable")[:count]
        out = left[chosen]
        joint = np.array([elimination.remove(out) for elimination in eliminations])
        # What they cost together lies between their number's steps in proportion to what each costs alone
        share = np.cumsum(price[chosen]) / max(float(price[chosen].sum()), 1e-300)
        share[-1] = 1.0
        start = costs[-1]
        costs += [start + joint * part for part in share]
        gone += out.tolist()
        left = np.delete(left, chosen)
    return Order(np.array(gone, dtype=np.int64), np.array(costs).T)


class Elimination:
    """One consumer while its units go: what is left of ``W^T W`` and of H^-1, both compact.

    Args:
        consumer: as it is before.
    """

    def __init__(self, consumer: Consumer) -> None:
        inverse, _ = inverse_hessian(consumer.H[None], consumer.ridge)
        self.inverse: Floats = inverse[0]
        self.Q: Floats = np.array(consumer.Q, dtype=np.float64)
        self.unit = consumer.unit

    def costs(self, units: Index) -> Floats:
        """Return what removing each of ``units`` alone costs: (len(units),); 0 for one without a column."""
        found = np.zeros(len(units))
        order = np.argsort(self.unit, kind="stable")
        starts = np.searchsorted(self.unit[order], units, side="left")
        counts = np.searchsorted(self.unit[order], units, side="right") - starts
        for size in np.unique(counts[counts > 0]):
            which = np.flatnonzero(counts == size)
            columns = order[starts[which][:, None] + np.arange(size)]
            found[which] = self._costs(columns)
        return found

    def _costs(self, columns: Index) -> Floats:
        """Return the cost of each row of ``columns`` (units, columns of one)."""
        if columns.shape[1] == 1:
            at = columns[:, 0]
            return np.asarray(np.maximum(self.Q[at, at], 0.0) / self.inverse[at, at])
        rows, cols = columns[:, :, None], columns[:, None, :]
        blocks = np.linalg.solve(self.inverse[rows, cols], self.Q[rows, cols])
        return np.asarray(np.maximum(np.einsum("uii->u", blocks), 0.0))

    def remove(self, units: Index) -> float:
        """Remove ``units`` together, re-fit the rest, return what that costs."""
        out = np.isin(self.unit, units)
        if not out.any():
            return 0.0
        kept, gone = np.flatnonzero(~out), np.flatnonzero(out)
        block = self.inverse[np.ix_(gone, gone)]
        Q_gg, Q_gk = self.Q[np.ix_(gone, gone)], self.Q[np.ix_(gone, kept)]
        across = self.inverse[np.ix_(gone, kept)]
        cost = float(np.trace(np.linalg.solve(block, Q_gg)))
        A = np.linalg.solve(block, across)  # W_k - W_g A is the weight that is re-fitted
        inverse = self.inverse[np.ix_(kept, kept)]
        inverse -= across.T @ A
        # Q_kk - A^T Q_gk - Q_kg A + A^T Q_gg A, as one product
        Q, B = self.Q[np.ix_(kept, kept)], Q_gk - 0.5 * (Q_gg @ A)
        Q -= np.concatenate([A, B]).T @ np.concatenate([B, A])
        self.inverse, self.Q, self.unit = inverse, Q, self.unit[kept]
        return max(cost, 0.0)


def by_size(consumers: Sequence[Consumer], units: int, least: int = 1, *, inputs: bool = False) -> Order:
    """Return the order of the plain criteria, with the same costs: of what least squares cannot make good.

    Args:
        consumers: who reads the units.
        units: how many there are.
        least: how many stay.
        inputs: weigh the columns by the mean square of their inputs (Wanda), else by nothing (magnitude).
    """
    score = np.zeros(units)
    for consumer in consumers:
        column = np.diag(consumer.Q) * (np.diag(consumer.H) if inputs else 1.0)
        whole = float(column.sum()) or 1.0
        owned = consumer.unit >= 0
        score += np.bincount(consumer.unit[owned], column[owned] / whole, minlength=units)[:units]
    order = np.argsort(score, kind="stable")[: units - least]
    return Order(order, costs_of(consumers, order))


def costs_of(consumers: Sequence[Consumer], order: Index, *, rounds: int = ROUND) -> Floats:
    """Return the costs (consumers, len(order) + 1) when units go in the given order, the rest re-fitted."""
    step = max(1, len(order) // rounds)
    stops = [*range(step, len(order), step), len(order)] if len(order) else []
    found = np.zeros((len(consumers), len(order) + 1))
    for row, consumer in zip(found, consumers, strict=True):
        elimination, at, total = Elimination(consumer), 0, 0.0
        for stop in stops:
            joint = elimination.remove(order[at:stop])
            row[at + 1 : stop + 1] = total + joint * np.arange(1, stop - at + 1) / (stop - at)
            at, total = stop, total + joint
    return found


def without(W: NDArray[np.floating], H: Floats, gone: NDArray[np.bool_], ridge: float) -> NDArray[np.float32]:
    """Return the weight (groups, out, in) without the columns ``gone`` (groups, in), the rest re-fitted.

    It minimises ``tr((W - W') H (W - W')^T)``, pulled towards W by the ridge.

    Args:
        W: (groups, out_features, in_features).
        H: (groups, in_features, in_features).
        gone: True for columns to remove.
        ridge: as a share of the mean diagonal of H.
    """
    found = np.where(gone[:, None, :], 0.0, W)
    for g in range(len(W)):
        out, kept = np.flatnonzero(gone[g]), np.flatnonzero(~gone[g])
        if len(out) and len(kept):
            missing = W[g][:, out].astype(np.float64) @ H[g][np.ix_(out, kept)]
            change, _ = solve_damped(H[g][None][:, kept[:, None], kept], ridge, missing[None])
            found[g][:, kept] += change[0]
    return found.astype(np.float32)
