"""Choose a pattern and a sparsity for each layer: the least damage for the speed that is asked for.

For a price of time each layer takes the pattern and sparsity with the least sum of damage and time; the
price is bisected until the predicted time (or the predicted damage) is what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.budget import GRID
from onnxprune.solvers.patterns import Pattern

Grid = NDArray[np.float64]
# Without blocks, and blocks that the kernels know; wider ones lose more than they gain.
CANDIDATES = tuple(map(Pattern.parse, ("unstructured", "block:4x1", "block:8x1", "block:16x1")))
_STEPS = 100


@dataclass(frozen=True)
class Choices:
    """What one layer may become.

    Attributes:
        size: weights.
        time: dense time, in any unit that adds.
        patterns: (k,) the candidates.
        cost: (k, grid) damage of each pattern at each sparsity of :data:`~onnxprune.allocation.budget.GRID`.
        relative: (k, grid) time as a share of the dense time.
    """

    size: int
    time: float
    patterns: Sequence[Pattern]
    cost: Grid
    relative: Grid


@dataclass(frozen=True)
class Choice:
    """What one layer becomes: its pattern, its zeros, its predicted damage and time."""

    pattern: Pattern
    zeros: int
    cost: float
    time: float


def fastest(layers: Mapping[str, Choices], damage: float) -> dict[str, Choice]:
    """Return the fastest choice whose predicted damage is at most ``damage``."""
    return _bisect(layers, lambda found: sum(c.cost for c in found.values()) <= damage, cheap=True)


def least_damage(layers: Mapping[str, Choices], speedup: float) -> dict[str, Choice]:
    """Return the choice of least damage whose predicted time is at most 1 / ``speedup`` of the dense time.

    When no choice is that fast, the fastest.
    """
    limit = sum(layer.time for layer in layers.values()) / speedup
    return _bisect(layers, lambda found: sum(c.time for c in found.values()) <= limit, cheap=False)


def _bisect(
    layers: Mapping[str, Choices], accept: Callable[[dict[str, Choice]], bool], *, cheap: bool
) -> dict[str, Choice]:
    """Bisect the price of time between one that is accepted and one that is not.

    Args:
        layers: to choose for.
        accept: tells whether a choice is what was asked for.
        cheap: whether low prices (little damage) are accepted, or high ones (little time).
    """
    low, high = -40.0, 40.0  # logarithms of the price of the whole dense time
    whole = sum(layer.time for layer in layers.values()) or 1.0
    best = _choose(layers, np.exp(low if cheap else high) / whole)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = _choose(layers, float(np.exp(middle)) / whole)
        accepted = accept(found)
        if accepted:
            best = found
        if accepted == cheap:
            low = middle
        else:
            high = middle
    return best


def _choose(layers: Mapping[str, Choices], price: float) -> dict[str, Choice]:
    found = {}
    for name, layer in layers.items():
        time = layer.time * layer.relative
        total = layer.cost + price * time
        # Of equals the one with fewer zeros: patterns and sparsities are in that order.
        at, step = divmod(int(np.argmin(total)), len(GRID))
        found[name] = Choice(
            layer.patterns[at] if GRID[step] > 0 else Pattern(),
            round(GRID[step] * layer.size),
            float(layer.cost[at, step]),
            float(time[at, step]),
        )
    return found
