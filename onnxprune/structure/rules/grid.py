"""Labels on a grid of axes that is reshaped: which axes belong together, and which one the labels lie on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.structure.labels import RuleError

Shape = Sequence[int]


def blocks(old: Shape, new: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest runs of axes of two shapes that hold the same elements, axes of size 1 left out.

    >>> list(blocks((2, 12, 5, 5), (2, 3, 4, 25)))
    [([0], [0]), ([1], [1, 2]), ([2, 3], [3])]

    Raises:
        RuleError: when the shapes have no elements, or not as many.
    """
    if math.prod(old) != math.prod(new) or not math.prod(old):
        raise RuleError("shapes without elements")
    ins = [(axis, size) for axis, size in enumerate(old) if size > 1]
    outs = [(axis, size) for axis, size in enumerate(new) if size > 1]
    while ins:
        (first, a), (second, b) = ins.pop(0), outs.pop(0)
        left, right = [first], [second]
        while a != b:
            axis, size = ins.pop(0) if a < b else outs.pop(0)
            if a < b:
                a, left = a * size, [*left, axis]
            else:
                b, right = b * size, [*right, axis]
        yield left, right


def unfold(labels: NDArray[np.int64], place: int, old: Shape, new: Shape) -> NDArray[np.int64]:
    """Return the labels of a block's positions, of shape ``new``; they lie on axis ``place`` of ``old``."""
    grid = labels.reshape([-1 if axis == place else 1 for axis in range(len(old))])
    return np.broadcast_to(grid, tuple(old)).reshape(tuple(new))


def rows(full: NDArray[np.int64], place: int) -> NDArray[np.int64]:
    """Return the labels that share an index on axis ``place``, (size of the axis, rest)."""
    return np.moveaxis(full, place, 0).reshape(full.shape[place], -1)


def only_axis(full: NDArray[np.int64]) -> int | None:
    """Return the axis along which alone labels differ, None when there are several.

    >>> only_axis(np.array([[4, 5, 6], [4, 5, 6]]))
    1
    """
    for place in range(full.ndim):
        lines = rows(full, place)
        if (lines == lines[:, :1]).all():
            return place
    return None
