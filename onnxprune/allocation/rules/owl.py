"""OWL: layers with more outliers among their saliencies get less of the sparsity.

Source: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
Sparsity" (2024): M = 5, lambda = 0.08.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.rules.facts import Facts

RANGE = 0.08  # lambda


def shares(facts: Mapping[str, Facts], sparsity: float) -> NDArray[np.float64]:
    """Return (layers,): sparsities that are at most ``2 * RANGE`` apart, less where there are outliers."""
    outliers = np.array([item.outliers for item in facts.values()])
    sizes = np.array([item.size for item in facts.values()], dtype=np.float64)
    spread = outliers.max() - outliers.min()
    if spread <= 0:
        return np.full(len(outliers), sparsity)
    moved = (outliers - outliers.min()) * (2 * RANGE / spread)
    moved -= (moved * sizes).sum() / sizes.sum()
    return np.asarray(sparsity * (1 + 4 * RANGE) - 2 * RANGE - moved)  # 0 and 1 are reached by all
