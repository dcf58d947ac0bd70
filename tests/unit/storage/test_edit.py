from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model import Model
from onnxprune.storage import edit

TEXT = """g (float[N] x, bool c) => (float[N] y) { s = Add(x, w) y = If (c) <
    then_branch = a () => (float[N] p) { inner = Relu(s) p = Neg(inner) },
    else_branch = b () => (float[N] q) { q = Identity(s) }> }"""


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    return Model(build_model(TEXT, {"w": np.ones(1, np.float32)}))


def listed(model: Model) -> None:
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.reindex()


@pytest.mark.parametrize("taken", ["x", "c", "y", "s", "w", "inner", "p", "q"])
def test_fresh_names_avoid_all_others(taken: str, model: Model) -> None:
    names = edit.Names(model)
    assert names.fresh(taken) == f"{taken}_1"
    assert names.fresh(taken) == f"{taken}_2"
    assert names.fresh("new") == "new" and names.fresh("new") == "new_1"


def test_fill_keeps_name_and_doc() -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4])  # in float_data
    tensor.doc_string = "d"
    edit.fill(tensor, numpy_helper.from_array(np.array([7], np.float16), "other"))
    assert (tensor.name, tensor.doc_string) == ("w", "d") and not tensor.float_data
    assert numpy_helper.to_array(tensor).tolist() == [7] and tensor.data_type == TensorProto.FLOAT16


def test_constant_node_yields_the_tensor() -> None:
    node = edit.constant_node(numpy_helper.from_array(np.arange(3)), "k")
    assert (node.op_type, list(node.output)) == ("Constant", ["k"])
    assert numpy_helper.to_array(node.attribute[0].t).tolist() == [0, 1, 2]


def test_dropping_by_name(model: Model) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N"]))
    model.graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    edit.drop_value_info(model.graph, {"w", "nothing"})
    assert [value.name for value in model.graph.value_info] == ["s"]
    edit.drop_initializers(model.graph, {"w"})
    assert not model.graph.initializer


class TestIrVersion:
    def test_is_never_lowered(self, model: Model) -> None:
        model.proto.ir_version = 10
        listed(model)
        edit.raise_ir_version(model, 8, set())
        assert model.proto.ir_version == 10 and len(model.graph.input) == 3

    def test_defaults_stay_defaults(self, model: Model) -> None:
        model.proto.ir_version = 4
        listed(model)
        assert edit.is_overridable(model, "w")
        edit.raise_ir_version(model, 8, set())
        assert model.proto.ir_version == 8 and edit.is_overridable(model, "w")

    def test_constants_stay_constant(self, model: Model) -> None:
        model.proto.ir_version = 3
        listed(model)
        assert not edit.is_overridable(model, "w")
        model.graph.input.append(helper.make_tensor_value_info("gone", TensorProto.FLOAT, [1]))
        edit.raise_ir_version(model, 8, {"gone"})
        assert [value.name for value in model.graph.input] == ["x", "c"]
        assert not edit.is_overridable(model, "w")
