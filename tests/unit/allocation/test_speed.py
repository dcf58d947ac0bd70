from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.allocation.speed import dense_costs, relative_times
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.solvers.patterns import Pattern

TEXT = """g (float[N, 4, 6, 6] x) => (float[N, 5] y) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, k)
    f = Flatten(c)  y = MatMul(f, w) }"""
S = np.linspace(0.0, 0.95, 20)


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    return Model(
        build_model(TEXT, {"k": np.ones((8, 4, 3, 3), np.float32), "w": np.ones((72, 5), np.float32)})
    )


def layer(model: Model, name: str) -> Layer:
    return next(found for found in find_layers(model, min_size=1)[0] if found.name == name)


def test_multiplications(model: Model) -> None:
    costs = dense_costs(model, find_layers(model, min_size=1)[0], [{"x": np.ones((2, 4, 6, 6), np.float32)}])
    assert costs == {"k": 2 * 9 * 8 * 4 * 9, "w": 2 * 72 * 5}


@pytest.mark.parametrize("name", ["k", "w"])
@pytest.mark.parametrize("text", ["unstructured", "block:4x1", "block:16x1"])
def test_times_fall_with_the_sparsity(model: Model, name: str, text: str) -> None:
    times = relative_times(layer(model, name), Pattern.parse(text), S)
    assert times[0] == 1 and (times > 0).all()
    assert (np.diff(times) <= 1e-12).all() and times[-1] < 0.5


@pytest.mark.parametrize("name", ["k", "w"])
def test_blocks_are_faster(model: Model, name: str) -> None:
    found = [relative_times(layer(model, name), Pattern.parse(t), S) for t in ("unstructured", "block:4x1")]
    assert (found[1] <= found[0]).all() and (found[1] < found[0]).any()


@pytest.mark.parametrize("output", ["y", "h"])
def test_multiplications_of_recurrent_nodes(build_model: Callable[..., onnx.ModelProto], output: str) -> None:
    """Each weight is multiplied once for each step of each sequence, whatever is read of the node."""
    text = """g (float[T, N, 6] x) => (float[...] OUT) {
        a = Relu(x) y, h = LSTM<hidden_size=8, direction="bidirectional">(a, W, R) }"""
    shapes = {"W": (2, 32, 6), "R": (2, 32, 8)}
    proto = build_model(
        text.replace("float[...] OUT", f"float[{'T, ' * (output == 'y')}2, N, 8] {output}"),
        {name: np.ones(shape, np.float32) for name, shape in shapes.items()},
    )
    if output == "h":
        proto.graph.node[1].output[0] = ""
    made = Model(proto)
    costs = dense_costs(made, find_layers(made, min_size=1)[0], [{"x": np.ones((7, 3, 6), np.float32)}])
    assert costs == {"W": 21 * 2 * 32 * 6, "R": 21 * 2 * 32 * 8}
