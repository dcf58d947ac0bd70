"""Where training starts, what it changes and what is compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.finetune.maps import attention_maps
from onnxprune.finetune.parts import compared, find_start, smaller, trainable
from onnxprune.io import load
from onnxprune.layers import find_layers
from onnxprune.model import Model
from tests.unit.finetune.networks import images, parse, residual_net

W = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)


def with_stranger(text: str, **weights: np.ndarray) -> Model:
    """A model in which each Sign is replaced by an operator that only ONNX Runtime knows."""
    proto = onnx.ModelProto()
    proto.CopyFrom(parse(text, weights).proto)
    for node in proto.graph.node:
        if node.op_type == "Sign":
            node.op_type, node.domain = "Inverse", "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return Model(proto)


def start_of(model: Model) -> str:
    return find_start(model, find_layers(model, min_size=1)[0])


def test_the_first_cut_with_something_to_train_behind_it() -> None:
    assert start_of(residual_net()) == ""
    text = """g (float[N, 8, 8] x) => (float[N, 8, 8] y) {
        a = MatMul(x, w) b = Sign(a) c = MatMul(b, v) d = Relu(c) y = MatMul(d, u) }"""
    assert start_of(with_stranger(text, w=W, v=W, u=W)) == "b"


def test_a_cut_with_nothing_behind_it_is_none() -> None:
    text = """g (float[N, 8, 8] x) => (float[N, 8, 8] y, float[N, 8, 8] z) {
        a = MatMul(x, w) b = Sign(a) c = Relu(b) y = Sigmoid(c) z = Tanh(c) }"""
    with pytest.raises(ModelError, match=r"cannot be fine-tuned: node .*com\.microsoft\.Inverse"):
        start_of(with_stranger(text, w=W))


def test_tables_are_not_trained() -> None:
    text = "g (int64[N] x) => (float[N, 8] y) { a = Gather(t, x) y = MatMul(a, w) }"
    assert trainable(parse(text, {"t": W, "w": W}), "", ["y"]) == {"w"}


def test_a_model_that_units_went_from_is_smaller() -> None:
    dense, narrow = residual_net(channels=12), residual_net(channels=6)
    names = trainable(narrow, "", list(narrow.index.outputs))
    assert smaller(dense, narrow, names) and not smaller(dense, dense, names)
    assert not smaller(dense, narrow, names - dense.index.tensors.keys())


def test_values_of_equal_shape_behind_the_start_are_compared() -> None:
    dense, small = residual_net(channels=12), residual_net(channels=6)
    layers, _ = find_layers(dense, min_size=1)
    feeds = {"x": images(2)}
    assert compared(dense, dense, layers, "", feeds, None) == (("h0", "h1", "f"), ())
    assert compared(dense, dense, layers, "h0", feeds, None) == (("h1", "f"), ())
    assert compared(dense, small, layers, "", feeds, None) == ((), ())


def test_attention_maps_are_compared_where_heads_are_left_alone(digits_transformer: Path) -> None:
    dense = load(digits_transformer)
    layers, _ = find_layers(dense)
    feeds = {"tokens": np.zeros((2, 16), np.int64)}
    found = compared(dense, dense, layers, "", feeds, None)
    assert found[1] == attention_maps(dense) and len(found[1]) == 2
