"""Taylor: the change of the loss when a weight is removed, to first order.

``E |w g|``, the mean over samples of the size of each one's change. Source: Molchanov et al., "Importance
Estimation for Neural Network Pruning" (2019); the mean of sizes rather than their squares as in their 2017
paper, so that it stands beside ``fisher``, which has the squares.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring.evidence import Evidence


def saliency(evidence: Evidence) -> NDArray[np.floating]:
    """Return ``E |w g|`` (groups, out_features, in_features) of the dense weight, compared over the layer."""
    return evidence.gradients.taylor
