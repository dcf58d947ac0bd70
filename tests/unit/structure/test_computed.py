"""Integers that a graph computes from shapes: as the smaller model will compute them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from onnxprune.model import Model
from onnxprune.structure.computed import computed, shape_part
from onnxprune.structure.find import find_structure
from onnxprune.structure.shrunk import Shrunk

TEXT = """g (float[N, 8, 4, 4] x) => (float[N, K] y) {
    a = Conv(x, w)  r = Relu(a)
    shape = Shape(r)  channels = Gather(shape, one)  half = Div(channels, two)
    batch = Gather(shape, nothing)  target = Concat<axis=0>(batch, minus)
    y = Reshape(r, target) }"""


def made(build_model: Callable[..., onnx.ModelProto]) -> tuple[Model, Shrunk]:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(16, 8, 1, 1)).astype(np.float32)}
    numbers = {"one": [1], "two": [2], "nothing": [0], "minus": [-1]}
    model = Model(build_model(TEXT, weights | {n: np.array(v, np.int64) for n, v in numbers.items()}))
    structure = find_structure(model, {"x": rng.normal(size=(2, 8, 4, 4)).astype(np.float32)})
    return model, Shrunk(structure, {})


def test_values_follow_shapes(build_model: Callable[..., onnx.ModelProto]) -> None:
    model, shrunk = made(build_model)
    found = computed(model, shrunk, ["half", "target", "shape"])
    assert {name: value.tolist() for name, value in found.items()} == {
        "half": [8],
        "target": [2, -1],
        "shape": [2, 16, 4, 4],
    }


def test_part_of_a_shape() -> None:
    node = onnx.helper.make_node("Shape", ["x"], ["s"], start=1, end=-1)
    assert shape_part(node, [2, 3, 4, 5]) == [3, 4]
    assert shape_part(onnx.helper.make_node("Shape", ["x"], ["s"]), [2, 3]) == [2, 3]
