from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from onnxprune.model import Model
from onnxprune.passes.constants import evaluate

Build = Callable[..., onnx.ModelProto]


def test_what_depends_on_no_input(build_model: Build) -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y) {
        two = Constant <value_ints = [2, 3]> ()
        s = Concat <axis = 0> (two, w)
        c = Cast <to = 1> (s)
        r = RandomNormal <shape = [4]> ()
        shape = Shape(x)
        y = Add(x, r) }"""
    model = Model(build_model(text, {"w": np.array([5], np.int64)}))
    found = evaluate(model, ["s", "c", "w", "r", "shape", "x", "nowhere", ""])
    assert {name: value.tolist() for name, value in found.items()} == {
        "w": [5],
        "s": [2, 3, 5],
        "c": [2.0, 3.0, 5.0],
    }


def test_nothing_to_do(build_model: Build) -> None:
    assert evaluate(Model(build_model("g (float[4] x) => (float[4] y) { y = Neg(x) }")), ["x", "y"]) == {}


def test_what_cannot_be_computed_is_not_known(build_model: Build) -> None:
    text = "g (float[4] x) => (float[4] y) { a = Constant <value_ints = [1, 2]> () b = Add(a, w) y = Neg(x) }"
    model = Model(build_model(text, {"w": np.arange(2)}))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.arange(3), "w"))
    model.reindex()
    assert evaluate(model, ["b"]) == {}
