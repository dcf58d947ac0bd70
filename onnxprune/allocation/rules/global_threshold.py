"""Global: one threshold for the saliencies of all layers.

Source for magnitudes: Han et al., "Learning both Weights and Connections" (2015); Frankle & Carbin, "The
Lottery Ticket Hypothesis" (2019), prune convolutional networks globally.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.budget import GRID
from onnxprune.allocation.rules.facts import Facts


def shares(facts: Mapping[str, Facts], sparsity: float) -> NDArray[np.float64]:
    """Return (layers,): the share of each layer's weights below one threshold.

    The thresholds run over all saliencies as ``sparsity`` runs from 0 to 1, evenly in their logarithm.
    """
    table = np.log(np.maximum([item.quantiles for item in facts.values()], 1e-300))
    low, high = table.min(), table.max()
    limit = low + sparsity * (high - low)
    found = np.array([_share(row, limit) for row in table])
    return np.ones(len(table)) if sparsity >= 1 else found


def _share(quantiles: NDArray[np.float64], limit: float) -> float:
    """Return the share below ``limit``; of equal quantiles the last: all of these weights lie below."""
    if limit < quantiles[0]:
        return 0.0
    place = int(np.searchsorted(quantiles, limit, side="right")) - 1
    if place + 1 >= len(quantiles):
        return 1.0
    width = quantiles[place + 1] - quantiles[place]
    return float(GRID[place] + (limit - quantiles[place]) / width * (GRID[place + 1] - GRID[place]))
