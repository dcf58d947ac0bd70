"""Wanda: weight magnitude times the norm of its input, compared within each output row.

Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (2024).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring.evidence import Evidence


def saliency(evidence: Evidence) -> NDArray[np.floating]:
    """Return ``|W_ij| ||x_j||`` (groups, out_features, in_features)."""
    return np.asarray(np.abs(evidence.W) * evidence.input_norm[:, None, :])
