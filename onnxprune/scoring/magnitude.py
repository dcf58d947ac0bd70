"""Magnitude: the smallest weights go first (Han et al., "Learning both Weights and Connections", 2015)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def saliency(W: NDArray[np.float32], H: NDArray[np.float64]) -> NDArray[np.floating]:
    """Return ``|W|`` (groups, out_features, in_features); the statistics are not used."""
    del H
    return np.abs(W)
