"""Weights of recurrent nodes that the graph computes become constants; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune import runtime
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.opening import folded
from onnxprune.passes.fold_recurrent import fold_recurrent, needs_fold_recurrent
from onnxprune.recipe import Recipe

Build = Callable[..., onnx.ModelProto]
# As PyTorch's exporter writes it: the gates of its weights in another order, and an axis for the direction.
TEXT = """g (float[T, N, 6] x) => (float[T, 1, N, 5] y) {
    i = Slice(w, zero, five, zero) rest = Slice(w, five, twenty, zero) o = Concat<axis=0>(rest, i)
    W = Unsqueeze(o, zero) R = Unsqueeze(r, zero)
    [cell] y = LSTM<hidden_size=5>(x, W, R, B) }"""


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w": (20, 6), "r": (20, 5), "B": (1, 40)}
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"zero": np.array([0]), "five": np.array([5]), "twenty": np.array([20])}


def names(model: Model) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


X = {"x": np.random.default_rng(1).normal(size=(7, 3, 6)).astype(np.float32)}


def test_computed_weights_become_constants(build_model: Build) -> None:
    dense = Model(build_model(TEXT, weights()))
    model = dense.copy()
    assert needs_fold_recurrent(model)
    assert fold_recurrent(model) == 2 and not needs_fold_recurrent(model)
    assert list(model.graph.node[0].input) == ["x", "cell.W", "cell.R", "B"]
    assert [node.op_type for node in model.graph.node] == ["LSTM"]
    assert names(model) == {"cell.W", "cell.R", "B"}
    w = weights()["w"]
    np.testing.assert_array_equal(model.array("cell.W"), np.concatenate([w[5:], w[:5]])[None])
    assert {layer.name for layer in find_layers(model, min_size=1)[0]} == {"cell.W", "cell.R"}
    outputs = [runtime.session(m.proto, threads=1).run(None, X)[0] for m in (dense, model)]
    np.testing.assert_array_equal(*outputs)


def test_a_weight_of_two_nodes_stays_one(build_model: Build) -> None:
    text = TEXT.replace("y = LSTM", "a = LSTM").replace(
        "}", "[second] b = LSTM<hidden_size=5>(x, W, R) y = Add(a, b) }"
    )
    model = Model(build_model(text, weights()))
    assert fold_recurrent(model) == 4
    assert [list(node.input)[1:3] for node in model.graph.node[:2]] == [["cell.W", "cell.R"]] * 2


def test_what_others_read_stays(build_model: Build) -> None:
    model = Model(build_model(TEXT.replace("=> (", "=> (float[1, 20, 6] W, "), weights()))
    assert fold_recurrent(model) == 2
    assert [node.op_type for node in model.graph.node] == ["Slice", "Slice", "Concat", "Unsqueeze", "LSTM"]
    assert names(model) == {"cell.W", "cell.R", *weights()} - {"r"}


@pytest.mark.parametrize(
    ("include", "exclude", "changed"),
    [((), ("cell",), 0), ((), ("*.R",), 1), (("cell.W",), (), 1), (("cell",), (), 2), (("other",), (), 0)],
)
def test_globs(build_model: Build, include: tuple[str, ...], exclude: tuple[str, ...], changed: int) -> None:
    dense = Model(build_model(TEXT, weights()))
    model = dense.copy()
    assert fold_recurrent(model, include, exclude) == changed
    found = folded(dense, Recipe(include=include, exclude=exclude))
    assert (found is dense) == (changed == 0)  # a model that stays as it is is not copied
    assert found.proto == model.proto


def test_weights_that_callers_may_replace_stay(build_model: Build) -> None:
    proto = build_model(TEXT, weights())
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [20, 6]))
    model = Model(proto)
    assert fold_recurrent(model) == 1  # R
    assert list(model.graph.node[-1].input)[:3] == ["x", "W", "cell.R"]


def test_weights_that_depend_on_inputs_stay(build_model: Build) -> None:
    text = TEXT.replace("(float[T, N, 6] x)", "(float[T, N, 6] x, float[20, 5] r)")
    arrays = {name: array for name, array in weights().items() if name != "r"}
    model = Model(build_model(text, arrays))
    assert fold_recurrent(model) == 1  # W
    assert list(model.graph.node[-1].input)[:3] == ["x", "cell.W", "R"]


def test_other_models_are_left_alone(build_model: Build) -> None:
    text = """g (float[T, N, 6] x) => (float[T, 1, N, 5] y) {
        [cell] z = LSTM<hidden_size=5>(x, W, R, B) y = Mul(z, s) }"""
    plain = {"W": np.ones((1, 20, 6), np.float32), "R": np.ones((1, 20, 5), np.float32)}
    model = Model(build_model(text, plain | {"B": np.ones((1, 40), np.float32), "s": np.ones(1, np.float32)}))
    before = model.to_bytes()
    assert not needs_fold_recurrent(model) and fold_recurrent(model) == 0
    assert model.to_bytes() == before
