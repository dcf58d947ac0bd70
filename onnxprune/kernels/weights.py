"""What of a weight decides how fast its kernel is: how dense it is, and how many rows share their zeros."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUPS = (16, 8, 4, 2)  # rows that a kernel takes together


@dataclass(frozen=True)
class Profile:
    """A weight as its kernel sees it.

    Attributes:
        density: share of nonzeros, 0 to 1.
        group: rows (outputs) of equal support that lie together in the mean, rounded down to a power of
            two up to 16: 1 for unstructured zeros, 4 for ``block:4x1``.
    """

    density: float
    group: int

    @property
    def rounded(self) -> float:
        """The density in steps of 5 %, upwards: weights that share it share one measurement."""
        return min(1.0, math.ceil(self.density * 20 - 1e-9) / 20)


def profile(weight: NDArray[Any], consumer: str, trans_b: bool) -> Profile:
    """Describe a dense weight in its stored shape.

    Args:
        weight: MatMul and Gemm ``(K, N)`` (``trans_b``: ``(N, K)``), Conv ``(N, ...)``.
        consumer: ``MatMul``, ``Gemm`` or ``Conv``.
        trans_b: attribute of Gemm.
    """
    rows = weight.reshape(weight.shape[0], -1) if consumer == "Conv" or trans_b else weight.T
    support = np.packbits(rows != 0, axis=1)
    kept = support[support.any(axis=1)]
    distinct = {row.tobytes() for row in kept}
    mean = len(kept) / max(len(distinct), 1)
    density = float(np.count_nonzero(weight)) / max(weight.size, 1)
    if density > 0.999:  # all rows are equal, but a dense weight has no pattern to speak of
        return Profile(density, 1)
    return Profile(density, next((g for g in GROUPS if mean >= 0.9 * g), 1))
