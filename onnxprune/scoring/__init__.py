"""Criteria: one file each, evidence in, saliency array out, no onnx import.

To add one: a file with ``saliency(evidence)``, a line in ``CRITERIA``, a test file. ``obs`` is not here: it
chooses and repairs weights in one go (:mod:`onnxprune.solvers`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring import activation, adaptive, attention, fisher, gradient, magnitude, taylor, wanda
from onnxprune.scoring.evidence import Evidence


@dataclass(frozen=True)
class Criterion:
    """A saliency function and how its scores are compared.

    Attributes:
        saliency: evidence -> scores of the shape of its W, not negative; higher = keep.
        per_row: True when every output row gets the same share of zeros.
    """

    saliency: Callable[[Evidence], NDArray[np.floating]]
    per_row: bool


CRITERIA = {
    "wanda": Criterion(wanda.saliency, per_row=True),
    "magnitude": Criterion(magnitude.saliency, per_row=False),
    "activation": Criterion(activation.saliency, per_row=False),
    "attention": Criterion(attention.saliency, per_row=False),
    "gradient": Criterion(gradient.saliency, per_row=False),
    "fisher": Criterion(fisher.saliency, per_row=False),
    "taylor": Criterion(taylor.saliency, per_row=False),
    "adaptive": Criterion(adaptive.saliency, per_row=False),
}
