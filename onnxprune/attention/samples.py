"""Sample attention: which outputs of a layer each sample asks for, where a model has no attention itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def sample_attention(X: Floats, W: Floats) -> Floats:
    """Return ``softmax(X W^T / sqrt(in_features))`` over the outputs: (samples, out_features).

    The inputs are the queries and the rows of W the keys; each row sums to 1. The scale is that of
    dot-product attention (Vaswani et al., "Attention Is All You Need", 2017): without it one output takes
    all as soon as the layer is wide.

    Args:
        X: (samples, in_features) inputs of the layer, one row a sample, a place or a token.
        W: (out_features, in_features).
    """
    scores = X.astype(np.float64) @ W.T.astype(np.float64) / np.sqrt(max(X.shape[1], 1))
    scores -= scores.max(1, keepdims=True)
    weights = np.exp(scores)
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)


def attended_inputs(X: Floats, W: Floats) -> NDArray[np.float64]:
    """Return the sum over samples of ``a_j |x_i|``, a from :func:`sample_attention`: (out, in).

    Sums add over batches. Times ``|W|`` they are a saliency: as Wanda's, but each output judges its inputs
    by the samples that ask for it.
    """
    A = sample_attention(X, W).astype(np.float64)
    return np.asarray(A.T @ np.abs(X, dtype=np.float64))
