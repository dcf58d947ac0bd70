from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.attention.walk import MIXES, MOVES, Walker, Weighted
from onnxprune.model import Model

TEXT = """g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) {
    wt = Transpose(w) a = MatMul(x, wt) b = Add(a, bias) c = Reshape(b, shape)
    d = MatMul(c, v) e = Mul(d, scale) f = Dropout(e) y = Add(z, f) }"""


@pytest.fixture
def walker(build_model: Callable[..., onnx.ModelProto]) -> Walker:
    square = np.ones((4, 4), np.float32)
    weights = {"w": square, "v": square, "bias": square[0], "scale": np.array(2, np.float32)}
    return Walker(Model(build_model(TEXT, {**weights, "shape": np.array([-1, 4], np.int64)})))


def test_back_to_the_weight(walker: Walker) -> None:
    assert walker.projection("c") == "w"  # through its transpose
    assert walker.projection("e") == "v"
    assert walker.projection("x") is None
    assert walker.weight("wt") == "w" and walker.weight("a") is None
    nodes = walker.model.graph.node
    position = next(number for number, node in enumerate(nodes) if node.output[0] == "d")
    assert walker.weighted(position) == Weighted(position, "v", 0)
    assert walker.weighted(position - 1) is None


def test_nearest_first_and_no_constants(walker: Walker) -> None:
    assert [name for name, _ in walker.back("c", MOVES | MIXES)] == ["c", "b", "a"]
    assert [node.op_type for _, _, node, _ in walker.forward("d", MOVES | MIXES)] == ["Mul", "Dropout", "Add"]


def test_on_to_the_residual(walker: Walker) -> None:
    assert walker.addition("d") == ("f", "z")
    assert walker.addition("y") == ("", "")
    found = walker.output_projection("b")
    assert found is not None and found.weight == "v"
    assert walker.output_projection("f") is None


def test_skip_layer_normalization() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("SkipLayerNormalization", ["x", "a", "g"], ["y"], domain="com.microsoft"),
    ]
    value = onnx.helper.make_tensor_value_info
    weights = [
        onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w"),
        onnx.numpy_helper.from_array(np.ones(4, np.float32), "g"),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, [2, 4])], [value("y", 1, [2, 4])], weights)
    assert Walker(Model(onnx.helper.make_model(graph))).addition("a") == ("a", "x")
