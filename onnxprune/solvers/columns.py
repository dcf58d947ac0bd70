"""The order in which a pattern sees the input features of a layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.layers import Layer
from onnxprune.solvers.patterns import Pattern


def column_order(layer: Layer, pattern: Pattern) -> NDArray[np.int64] | None:
    """Return the permutation of in_features under which groups of a pattern are neighbours, or None.

    In-features of a convolution are (channel, kernel position). N:M groups and blocks run along
    channels at one kernel position, as sparse tensor cores and sparse kernels read them.
    """
    if layer.kind != "conv" or layer.window is None or pattern.columns == 1:
        return None
    taps = int(np.prod(layer.window.kernel))
    features = layer.view.matrix[2]
    if taps == 1 or features == taps:
        return None
    return np.arange(features).reshape(features // taps, taps).T.ravel()
