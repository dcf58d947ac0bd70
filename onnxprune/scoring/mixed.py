"""Scores of a mixture: each criterion divided by its mean over the layer, times its weight, and summed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.recipe.mixture import SOLVER, Mixture
from onnxprune.scoring import CRITERIA
from onnxprune.scoring.evidence import Evidence


def per_row(mixture: Mixture) -> bool:
    """Whether every output row gets the same share of zeros: when all criteria ask for it."""
    return bool(mixture.scores) and all(CRITERIA[name].per_row for name, _ in mixture.scores)


def saliency(mixture: Mixture, evidence: Evidence) -> NDArray[np.floating]:
    """Return the scores of a mixture without ``obs``: (groups, out_features, in_features).

    A criterion that is alone keeps its own scale, which thresholds are given in.
    """
    if len(mixture.scores) == 1:
        return CRITERIA[mixture.scores[0][0]].saliency(evidence)
    return _sum(mixture, evidence)


def emphasis(mixture: Mixture, evidence: Evidence) -> NDArray[np.float32] | None:
    """Return what the OBS solver's energy is multiplied with, mean 1; None without other criteria.

    The energy of a weight is how much its removal moves the layer's own output; it knows nothing of what
    comes after. The factor is a weighted mean of 1 (for ``obs``) and the other scores over their means. So it
    is never below the share of ``obs``: what the others think nothing of is still ranked by its energy. The
    weights that stay are repaired for the layer's output alone.
    """
    if not mixture.scores:
        return None
    own = mixture.weight(SOLVER)
    whole = own + sum(weight for _, weight in mixture.scores)
    return np.asarray((own + _sum(mixture, evidence)) / whole, dtype=np.float32)


def _sum(mixture: Mixture, evidence: Evidence) -> NDArray[np.float64]:
    total = np.zeros(evidence.W.shape)
    for name, weight in mixture.scores:
        score = CRITERIA[name].saliency(evidence)
        total += weight * (score / (float(score.mean(dtype=np.float64)) or 1.0))
    return total
