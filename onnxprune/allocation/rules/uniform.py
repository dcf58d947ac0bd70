"""Uniform: every layer gets the same share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.rules.facts import Facts


def shares(facts: Mapping[str, Facts], sparsity: float) -> NDArray[np.float64]:
    """Return (layers,): ``sparsity`` for each."""
    return np.full(len(facts), sparsity)
