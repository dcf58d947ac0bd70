"""Wanda: weight magnitude times the norm of its input, compared within each output row.

Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (2024).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def saliency(W: NDArray[np.float32], H: NDArray[np.float64]) -> NDArray[np.floating]:
    """Return ``|W_ij| ||x_j||`` (groups, out_features, in_features).

    Args:
        W: (groups, out_features, in_features).
        H: (groups, in_features, in_features), second moments of the inputs, not centred.
    """
    norm = np.sqrt(np.maximum(np.einsum("gii->gi", H), 0.0))
    return np.asarray(np.abs(W) * norm[:, None, :])
