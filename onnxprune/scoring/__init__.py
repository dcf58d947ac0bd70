"""Criteria: one file each, arrays in, saliency array out, no onnx import.

To add one: a file with ``saliency(W, H)``, a line in ``CRITERIA``, a test file. ``obs`` is not here: it
chooses and repairs weights in one go (:mod:`onnxprune.solvers`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring import magnitude, wanda


@dataclass(frozen=True)
class Criterion:
    """A saliency function and how its scores are compared.

    Attributes:
        saliency: (W, H) -> scores of the shape of W.
        per_row: True when every output row gets the same share of zeros.
    """

    saliency: Callable[[NDArray[np.float32], NDArray[np.float64]], NDArray[np.floating]]
    per_row: bool


CRITERIA = {
    "magnitude": Criterion(magnitude.saliency, per_row=False),
    "wanda": Criterion(wanda.saliency, per_row=True),
}
