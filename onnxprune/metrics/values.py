"""Metrics of values: outputs and labels, (rows, width) float32 each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def pairs(found: Array, labels: Array) -> tuple[Array, ...]:
    """Return all values and their labels, flat."""
    return found.ravel(), labels.ravel()


def spearman(found: Array, labels: Array) -> float:
    """Return the correlation of the ranks, -1 to 1; equal values share the mean of their ranks.

    0 when one side is all the same: no order is kept then. NaN when a value is. Source: Spearman, "The proof
    and measurement of association between two things" (1904).
    """
    if not np.isfinite(found).all():
        return math.nan
    a, b = (rank - rank.mean() for rank in (_ranks(found), _ranks(labels)))
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm else 0.0


def _ranks(values: Array) -> Array:
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    middle: Array = (2 * last - count + 1) / 2
    return middle[which]


def squares(found: Array, labels: Array) -> tuple[Array, ...]:
    """Return the squared error of each value, float64."""
    return ((found.astype(np.float64) - labels).ravel() ** 2,)


def root(squared: Array) -> float:
    """Return the root of the mean."""
    return math.sqrt(float(squared.mean()))


def cosines(found: Array, labels: Array) -> tuple[Array, ...]:
    """Return the cosine of each row with its label, float64; 0 where one of the two is all zero."""
    a, b = found.astype(np.float64), labels.astype(np.float64)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return ((a * b).sum(1) / np.where(norm > 0, norm, 1),)


def mean(rows: Array) -> float:
    """Return the mean."""
    return float(rows.mean(dtype=np.float64))
