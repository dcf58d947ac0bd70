"""ERK, the Erdos-Renyi kernel rule: layers with many weights per feature get more of the sparsity.

Source: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity
inspired by network science" (2018); for convolutions Evci et al., "Rigging the Lottery" (2020).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.rules.facts import Facts


def shares(facts: Mapping[str, Facts], sparsity: float) -> NDArray[np.float64]:
    """Return (layers,): ``1 - density``, where densities are in relation as ERK has them.

    A layer's density is ``e (n_out + n_in + kernel sides) / weights``, at most 1; the factor e is what
    ``sparsity`` stands for: it falls from infinity at 0 to 0 at 1.
    """
    if sparsity <= 0:
        return np.zeros(len(facts))
    raw = np.array([_density(item) for item in facts.values()])
    return np.asarray(1.0 - np.minimum(1.0, (1 / sparsity - 1) * raw / raw.min()))


def _density(item: Facts) -> float:
    groups, outputs, inputs = item.matrix
    channels = inputs / float(np.prod(item.kernel))  # of an empty kernel: 1
    return (groups * outputs + channels + sum(item.kernel)) / item.size
