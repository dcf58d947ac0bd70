"""Adaptive: the share of a weight's importance that the task accounts for, ``I = g / (g + alpha a)``.

The gradient contribution g is ``E |w g|`` (as ``taylor``), the activation contribution a the root mean
square of the input that the weight reads; each is divided by its mean over the layer, so that ``alpha``
(``--alpha``) compares like with like. I lies in [0, 1]: near 1 where the loss hangs on the weight although
its input is weak, near 0 where a strong input hardly reaches the loss. With alpha = 0 every weight that
matters at all has I = 1. For one alpha, I grows with g / a alone: alpha does not change the order of the
weights of a layer, but it does change thresholds, whole neurons (sums of I) and mixtures with other
criteria.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring.evidence import Evidence


def saliency(evidence: Evidence) -> NDArray[np.floating]:
    """Return ``g / (g + alpha a)`` (groups, out_features, in_features), compared over the layer."""
    g, a = evidence.gradients.taylor.astype(np.float64), evidence.input_norm
    g, a = g / (g.mean() or 1.0), (a / (a.mean() or 1.0))[:, None, :]
    whole = g + evidence.alpha * a
    return np.asarray(np.divide(g, whole, out=np.zeros(g.shape), where=whole > 0))
