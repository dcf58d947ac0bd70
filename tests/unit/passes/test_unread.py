from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.passes.unread import drop_unread


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    text = """g (float[N, 4] x) => (float[N, 4] y, float[2] two) {
        c = Constant <value_ints = [1, 2]> ()
        d = Cast <to = 1> (c)
        e, f = Split <axis = 0, num_outputs = 2> (a)
        two = Mul(d, b)
        y = Neg(x) }"""
    weights = {"a": np.ones(4, np.float32), "b": np.ones(2, np.float32), "w": np.ones(3, np.float32)}
    return Model(build_model(text, weights, 18))


def test_what_nothing_reads(model: Model) -> None:
    drop_unread(model, ["w", "b", "d", "", "nowhere"])
    assert {t.name for t in model.graph.initializer} == {"a", "b"}
    assert [n.op_type for n in model.graph.node] == ["Constant", "Cast", "Split", "Mul", "Neg"]


def test_what_it_was_made_from_goes_too(model: Model) -> None:
    del model.graph.output[1]
    model.reindex()
    drop_unread(model, ["two"])
    assert [n.op_type for n in model.graph.node] == ["Split", "Neg"]
    assert {t.name for t in model.graph.initializer} == {"a", "w"}
    assert "c" not in model.index.producer


def test_a_node_stays_while_one_output_is_read(model: Model) -> None:
    model.graph.node[-1].op_type = "Add"
    model.graph.node[-1].input.append("f")
    model.reindex()
    drop_unread(model, ["e"])
    assert "Split" in [n.op_type for n in model.graph.node]


def test_both_outputs(model: Model) -> None:
    drop_unread(model, ["e", "f"])
    assert "Split" not in [n.op_type for n in model.graph.node] and "a" not in model.index.tensors


def test_inputs_and_outputs_stay(model: Model) -> None:
    drop_unread(model, ["x", "y", "two"])
    assert len(model.graph.node) == 5 and len(model.graph.output) == 2
