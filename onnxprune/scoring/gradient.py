"""Gradient: how strongly the loss pulls at a weight, whatever its value.

The root mean square of the gradients of single samples, not the size of their mean: at the minimum of a loss
the mean vanishes, and over answers that are drawn from the model itself it is zero but for noise.
Source: the relevance of Mozer & Smolensky, "Skeletonization" (1989), for single weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring.evidence import Evidence


def saliency(evidence: Evidence) -> NDArray[np.floating]:
    """Return ``sqrt(E[g^2])`` (groups, out_features, in_features), compared over the layer."""
    return np.asarray(np.sqrt(evidence.gradients.second))
