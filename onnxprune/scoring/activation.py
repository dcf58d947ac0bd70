"""Activation: what a weight carries, times how active the feature is that it feeds.

``|W_jk| rms(x_k) rms(y_j)``: the first two are the size of the contribution to the output (as Wanda has it),
the last the size of that output. Weak outputs lose their weights first, after Hu et al., "Network Trimming"
(2016), and the mean-activation criterion of Molchanov et al., "Pruning Convolutional Neural Networks for
Resource Efficient Inference" (2017), who remove whole features by their activations. Outputs are taken
before the bias and the activation function: only the layer itself is looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring.evidence import Evidence


def saliency(evidence: Evidence) -> NDArray[np.floating]:
    """Return ``|W_jk| rms(x_k) rms(y_j)`` (groups, out_features, in_features), compared over the layer."""
    carried = np.abs(evidence.W) * evidence.input_norm[:, None, :]
    return np.asarray(carried * evidence.output_norm[:, :, None])
