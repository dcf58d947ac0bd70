"""What a rule may know of a layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.budget import GRID
from onnxprune.layers import Layer

OUTLIER = 5.0  # times the mean saliency of a layer, from which OWL calls a weight an outlier


@dataclass(frozen=True)
class Facts:
    """A layer.

    Attributes:
        size: weights.
        matrix: (groups, out_features, in_features).
        kernel: places of a convolution's window; empty for other layers.
        highest: largest sparsity that it may get.
        quantiles: (grid,) saliency below which each share of GRID lies; comparable between layers.
        outliers: share of the weights whose saliency is over :data:`OUTLIER` times the mean.
    """

    size: int
    matrix: tuple[int, int, int]
    kernel: tuple[int, ...] = ()
    highest: float = 1.0
    quantiles: NDArray[np.float64] = field(default_factory=lambda: GRID * 1.0)
    outliers: float = 0.0

    @classmethod
    def of(cls, layer: Layer, highest: float) -> Facts:
        """Return what is known without any data."""
        kernel = layer.window.kernel if layer.window is not None else ()
        return cls(layer.size, layer.view.matrix, kernel, highest)
