"""What a rule may know without any data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from onnxprune.allocation.budget import GRID
from onnxprune.allocation.rules.facts import Facts
from onnxprune.layers import find_layers
from onnxprune.model import Model


def test_of_a_convolution_and_a_matrix(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = """g (float[N, 4, 6, 6] x) => (float[N, 5] y) {
        c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 2> (x, k)
        f = Flatten(c)  y = MatMul(f, w) }"""
    weights = {"k": np.ones((8, 2, 3, 3), np.float32), "w": np.ones((288, 5), np.float32)}
    conv, matrix = (
        Facts.of(layer, 0.9) for layer in find_layers(Model(build_model(text, weights)), min_size=1)[0]
    )
    assert (conv.size, conv.matrix, conv.kernel, conv.highest) == (144, (2, 4, 18), (3, 3), 0.9)
    assert (matrix.matrix, matrix.kernel, matrix.outliers) == ((1, 5, 288), (), 0.0)
    assert np.array_equal(matrix.quantiles, GRID)
