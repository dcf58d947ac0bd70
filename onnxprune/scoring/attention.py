"""Attention: magnitude, weighted by how much attention the samples pay to each output feature.

Sample attention treats the weight as keys and the samples as queries, ``A = softmax(X W^T / t)`` over the
output features (Vaswani et al., "Attention Is All You Need", 2017, without learnt projections); feature j
gets the mean of its column. No samples are kept, only their mean m and second moments H. For Gaussian
inputs a score ``x w_j`` has mean ``w_j m`` and variance ``v_j = w_j (H - m m^T) w_j^T``, and
``E[exp s] = exp(mean + variance / 2)``; with the mean of the ratio taken for the ratio of the means,

    a_j = exp(w_j m / t + v_j / 2 t^2) / sum of the same over the features of the group.

The temperature t is the root mean square of all scores of the group. It does what ``sqrt(d)`` does for
trained queries and keys, bring the scores to size one, and frees the attention from the layer's units.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring.evidence import Evidence


def sample_attention(evidence: Evidence) -> NDArray[np.float64]:
    """Return the attention of each output feature relative to the mean of its group: (groups, out_features).

    The mean of each group is 1. Without any activity (all scores 0) every feature gets 1.
    """
    W = evidence.W.astype(np.float64)
    square = evidence.output_norm**2
    mean = np.zeros(square.shape)
    if evidence.mean is not None:
        mean = np.einsum("goi,gi->go", W, evidence.mean)
    t = np.sqrt(np.maximum(square.mean(axis=1, keepdims=True), 1e-300))
    score = mean / t + np.maximum(square - mean**2, 0.0) / (2 * t**2)
    a = np.exp(score - score.max(axis=1, keepdims=True))
    return np.asarray(a / a.mean(axis=1, keepdims=True))


def saliency(evidence: Evidence) -> NDArray[np.floating]:
    """Return ``a_j |W_jk|`` (groups, out_features, in_features), compared over the layer."""
    return np.asarray(sample_attention(evidence)[:, :, None] * np.abs(evidence.W))
