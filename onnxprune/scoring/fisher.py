"""Fisher: the expected rise of the loss when a weight is removed, to second order.

The diagonal of the Hessian of LeCun et al., "Optimal Brain Damage" (1990), replaced by that of the Fisher
matrix as in Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring.evidence import Evidence


def saliency(evidence: Evidence) -> NDArray[np.floating]:
    """Return ``w^2 E[g^2] / 2`` (groups, out_features, in_features), compared over the layer."""
    return np.asarray(0.5 * np.square(evidence.W, dtype=np.float64) * evidence.gradients.second)
