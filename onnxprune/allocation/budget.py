"""Share an exact number of zeros among layers so that the sum of their costs is smallest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRID = np.linspace(0.0, 0.99, 100)  # sparsities a layer can be given before the exact rounding
_BROKEN = 1e9  # cost of a pruning after which the outputs are not even numbers


@dataclass(frozen=True)
class Curve:
    """Cost of pruning one layer, measured at a few sparsities.

    Attributes:
        size: weights in the layer.
        sparsity: (k,) increasing, above 0.
        cost: (k,) cost at each; any unit that adds over layers.
        highest: largest sparsity the layer may get.
    """

    size: int
    sparsity: tuple[float, ...]
    cost: tuple[float, ...]
    highest: float = 0.98

    def on_grid(self) -> NDArray[np.float64]:
        """Return the cost at each sparsity of GRID: 0 at 0, straight lines of log cost in between.

        Before the first measurement its slope goes on: costs of pruning grow about exponentially with the
        sparsity. Beyond the last one they grow faster, since little is left to make up for what goes: at
        least as a power of the density, which the last two measurements give, and as fast as before.
        """
        s = np.asarray(self.sparsity)
        cost = np.nan_to_num(np.asarray(self.cost, dtype=np.float64), nan=_BROKEN, posinf=_BROKEN)
        y = np.log(np.maximum.accumulate(np.maximum(cost, 1e-12)))
        grid = np.interp(GRID, s, y)
        if len(s) > 1:
            low, high = (y[1] - y[0]) / (s[1] - s[0]), (y[-1] - y[-2]) / (s[-1] - s[-2])
            grid = np.where(s[0] > GRID, y[0] + (GRID - s[0]) * low, grid)
            power = (y[-1] - y[-2]) / np.log((1 - s[-2]) / (1 - s[-1]))
            beyond = np.maximum((GRID - s[-1]) * max(high, low), power * np.log((1 - s[-1]) / (1 - GRID)))
            grid = np.where(s[-1] < GRID, y[-1] + beyond, grid)
        cost = np.exp(grid)
        cost[0] = 0.0
        cost[self.highest + 1e-9 < GRID] = np.inf
        return np.asarray(cost)

    def at(self, zeros: int) -> float:
        """Return the cost of that many zeros."""
        cost = self.on_grid()
        allowed = np.isfinite(cost)
        return float(np.interp(zeros / self.size, GRID[allowed], cost[allowed]))


def allocate(
    curves: Mapping[str, Curve], zeros: float, unit: Mapping[str, float] | None = None
) -> dict[str, int]:
    """Return zeros per layer: the least total cost whose counts sum to ``zeros`` exactly.

    Lagrangian relaxation: for a price per zero each layer takes its best grid point; the price is
    bisected, and the layers at the margin take what is left.

    Args:
        curves: layer name -> cost curve.
        zeros: total to give out; more than the layers may take gives each layer its highest.
        unit: layer name -> what one of its zeros counts, such as multiplications; the sum is then as near to
            ``zeros`` as whole weights get. Layers whose zeros count nothing keep them all.
    """
    if not curves:
        return {}
    names = list(curves)
    table = np.array([curves[name].on_grid() for name in names])
    units = np.array([1.0 if unit is None else unit[name] for name in names])
    sizes = units * [curves[name].size for name in names]
    counts = sizes[:, None] * GRID

    def choose(price: float) -> NDArray[np.int64]:
        return np.asarray(np.argmin(table - price * counts, axis=1))

    low, high = 0.0, 1e-12
    rows = np.arange(len(names))
    reachable = counts[rows, choose(1e30)].sum()
    while counts[rows, choose(high)].sum() < min(zeros, reachable):
        high *= 4
    for _ in range(100):
        middle = (low + high) / 2
        if counts[rows, choose(middle)].sum() < zeros:
            low = middle
        else:
            high = middle
    below, above = counts[rows, choose(low)], counts[rows, choose(high)]
    room = above - below
    missing = max(0.0, min(zeros, above.sum()) - below.sum())
    share = missing / room.sum() if room.sum() > 0 else 0.0
    given = below + share * room
    if unit is not None:
        return {
            name: round(amount / max(unit[name], 1e-300)) for name, amount in zip(names, given, strict=True)
        }
    return exact_counts(dict(zip(names, given, strict=True)), int(zeros), curves)


def level(
    curves: Mapping[str, Curve],
    zeros: Mapping[str, int],
    share: float,
    unit: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Return zeros per layer that are nearer to equal sparsities, with the same sum.

    The least sum goes to extremes: effects are those of a few samples and of each layer alone, where later
    layers do not yet make up for what earlier ones lost, and the least of many numbers with errors is too
    good to be true. Layers that break the outputs stay as they are.

    Args:
        curves: layer name -> cost curve.
        zeros: as :func:`allocate` gave them.
        share: of the way, 0 to 1.
        unit: as for :func:`allocate`.
    """
    units = {name: 1.0 if unit is None else unit[name] for name in zeros}
    free = [name for name in zeros if units[name] and np.isfinite(curves[name].cost).all()]
    whole = sum(units[name] * curves[name].size for name in free)
    given = sum(units[name] * zeros[name] for name in free)
    moved = {
        name: zeros[name] + share * (given / whole * curves[name].size - zeros[name])
        if name in free
        else zeros[name]
        for name in zeros
    }
    if unit is not None:
        return {name: round(amount) for name, amount in moved.items()}
    return exact_counts(moved, sum(zeros.values()), curves)


def exact_counts(wanted: Mapping[str, float], zeros: int, curves: Mapping[str, Curve]) -> dict[str, int]:
    """Round ``wanted`` to whole numbers that sum to ``zeros``: largest remainders first, ties in order."""
    counts = {name: int(value) for name, value in wanted.items()}
    left = zeros - sum(counts.values())
    order = sorted(counts, key=lambda name: counts[name] - wanted[name])
    for step in range(abs(left) and 2):
        for name in order:
            take = 1 if step == 0 else abs(left)  # first a remainder each, then whatever is left
            take = max(-counts[name], min(take if left > 0 else -take, _limit(curves[name]) - counts[name]))
            take = min(take, left) if left > 0 else max(take, left)
            counts[name] += take
            left -= take
            if left == 0:
                return counts
    return counts


def _limit(curve: Curve) -> int:
    return int(curve.highest * curve.size)
