"""Outputs that put values of different scales into one tensor, as detectors do: arrays in, cuts out.

YOLO's output has boxes in pixels beside scores below 1. Taken as a whole its error is that of the boxes, and
scores can be lost without a trace. So such an output is compared part by part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_APART = 10.0  # every value on one side of a cut is so many times those on the other, in the mean square
_NOTHING = 1e-7  # of the largest: below it is rounding
_WIDEST = 1024  # of an axis that may hold parts; longer ones are positions
_MOST = 4  # parts


def find_cuts(value: NDArray[Any], axes: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
    """Return the axis along which ``value`` has parts of different scales, and where the next ones begin.

    Args:
        value: an output of floating point numbers for one batch, any rank.
        axes: that may hold parts; the shortest one that does is taken.
    """
    if not value.size:
        return None
    for axis in sorted(axes, key=lambda axis: value.shape[axis]):
        if not 3 <= value.shape[axis] <= _WIDEST:
            continue
        others = tuple(other for other in range(value.ndim) if other != axis)
        with np.errstate(over="ignore", invalid="ignore"):
            sizes = np.sqrt(np.mean(np.square(value, dtype=np.float64), axis=others))
        if np.isfinite(sizes).all() and (cuts := _cuts(sizes)):
            return axis, tuple(cuts)
    return None


def _cuts(sizes: NDArray[np.float64]) -> list[int]:
    cuts: list[int] = []
    while len(cuts) < _MOST - 1:
        bounds = [0, *cuts, len(sizes)]
        found = [
            (gap, start + place)
            for start, end in pairwise(bounds)
            for gap, place in [_widest(sizes[start:end], _NOTHING * sizes.max(initial=0))]
            if gap >= _APART
        ]
        if not found:
            break
        cuts = sorted([*cuts, max(found)[1]])
    return cuts


def _widest(sizes: NDArray[np.float64], nothing: float) -> tuple[float, int]:
    """Return by what factor two sides are apart where they are most, and where; none may be rounding."""
    best = (0.0, 0)
    for place in range(1, len(sizes)):
        one, other = sizes[:place], sizes[place:]
        if max(one.max(), other.max()) <= 0 or min(one.max(), other.max()) <= nothing:
            continue
        gap = max(one.min() / other.max(), other.min() / one.max())
        best = max(best, (float(gap), place))
    return best
