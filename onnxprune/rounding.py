"""How much a model makes of rounding errors, so that a check does not take them for mistakes.

A model may amplify the rounding of one layer a lot: a difference of large numbers does, or a softmax over
thousands of classes. How much is told by weights that are off by a few units of the last place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.layers.find import is_matrix
from onnxprune.layers.layer import FLOATS
from onnxprune.model import Model

NOISE = 10.0  # rounding may move an output so many times as far as weights that are shaken
_LAST_PLACES = 2.0**-20  # of a weight: 8 units of the last place of float32


def shaken(model: Model, names: Iterable[str]) -> Model:
    """Return a copy whose weights ``names`` differ by about a rounding error each; zeros stay zeros."""
    result, rng = model.copy(), np.random.default_rng(0)
    for name in names:
        weight = result.array(name)
        factors = 1 + _LAST_PLACES * rng.choice((-1.0, 1.0), weight.shape)
        result.set_array(name, (weight.astype(np.float64) * factors).astype(weight.dtype))
    return result


def matrices(model: Model) -> list[str]:
    """Return the names of all floating point weights with two axes at least, pruned or not."""
    tensors = model.index.tensors.items()
    return [name for name, tensor in tensors if is_matrix(tensor) and tensor.data_type in FLOATS]


def relative(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the largest ``|a - b|`` by the largest finite ``|b|``; infinity where only one is a number."""
    if a.shape != b.shape:
        return float("inf")
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    with np.errstate(invalid="ignore"):
        gaps: NDArray[Any] = np.abs(a - b)[differ]
    if not np.isfinite(gaps).all():
        return float("inf")
    largest = np.abs(b[np.isfinite(b)]).max(initial=0)
    return float(gaps.max(initial=0) / max(largest, 1e-12))
