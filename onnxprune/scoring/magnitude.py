"""Magnitude: the smallest weights go first (Han et al., "Learning both Weights and Connections", 2015)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring.evidence import Evidence


def saliency(evidence: Evidence) -> NDArray[np.floating]:
    """Return ``|W|`` (groups, out_features, in_features); the statistics are not used."""
    return np.abs(evidence.W)
