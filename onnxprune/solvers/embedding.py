"""Prune an embedding table, the weight of a Gather.

A row is only ever multiplied by a one-hot vector, so the Hessian is diagonal (how often the token
occurs) and second-order pruning is magnitude times the root of the frequency.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.solvers.patterns import Mask, Pattern


def keep(table: NDArray[np.float32], counts: NDArray[np.int64], pattern: Pattern, zeros: int) -> Mask:
    """Return the mask (1, rows, width) that drops ``zeros`` entries.

    Args:
        table: (rows, width).
        counts: (rows,) how often each row was looked up on the calibration data.
        pattern: of the zeros; rows are the output features.
        zeros: entries to drop.
    """
    return pattern.keep((table * table * row_weights(table, counts))[None].astype(np.float32), zeros)


def row_weights(table: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return what the squares of each row count: (rows, 1).

    Each row by itself: a token that the few calibration texts do not hold may be the user's next word. Seen
    rows count a little more, by the logarithm because word frequencies span orders of magnitude.
    """
    norm = np.maximum((table * table).mean(axis=1, keepdims=True), 1e-30)
    return np.asarray((1.0 + np.log1p(counts.astype(np.float32))[:, None]) / norm, dtype=np.float32)
