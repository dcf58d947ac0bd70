from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.storage.body import constant, given, given_tensor, tensor

ARRAYS = [
    np.array([[0, 1], [7, 255]], np.uint8),
    np.array([-128, -1, 127], np.int8),
    np.array(2**31 - 1, np.int32),
    np.array([-1, 2**40], np.int64),
    np.array([0.1], np.float32),
]


def run(nodes: list[onnx.NodeProto], opset: int, like: Any) -> Any:
    """Return the value ``c``, which is declared to be an array like ``like``."""
    kind = helper.np_dtype_to_tensor_dtype(like.dtype)
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("c", kind, like.shape)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)  # refuses integers in a Constant of opset 7
    return ReferenceEvaluator(proto).run(None, {})[0]


@pytest.mark.parametrize("opset", [7, 8, 9, 17])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_constants(array: Any, opset: int) -> None:
    nodes = constant("c", array, opset)
    found = run(nodes, opset, array)
    assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()
    assert len(nodes) == (2 if opset < 9 and array.dtype != np.float32 else 1)


@pytest.mark.parametrize("opset", [8, 9])
def test_constants_of_another_type(opset: int) -> None:
    nodes = constant("c", np.array([0, 200], np.uint8), opset, np.int32)
    assert nodes[0].ByteSize() < 60 and len(nodes) == 2
    found = run(nodes, opset, np.zeros(2, np.int32))
    assert found.dtype == np.int32 and found.tolist() == [0, 200]


@pytest.mark.parametrize("opset", [7, 9])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_tensors_that_are_attributes(array: Any, opset: int) -> None:
    nodes = given_tensor("a", "c", array.dtype, opset)
    assert nodes[0].attribute[0].ref_attr_name == "a"
    nodes[0].attribute[0].CopyFrom(helper.make_attribute("value", tensor(array, opset)))  # as inlining does
    found = run(nodes, opset, array)
    assert found.dtype == array.dtype and found.tobytes() == array.tobytes()


def test_narrow_types_stay_small_before_opset_9() -> None:
    assert numpy_helper.to_array(tensor(np.zeros(9, np.uint8), 8)).dtype == np.float16
    assert numpy_helper.to_array(tensor(np.zeros(9, np.uint8), 9)).dtype == np.uint8


def test_attributes_of_the_function() -> None:
    node = given("Split", ["x"], "a", "b", axis=1, split=("pieces", AttributeProto.INTS))
    assert list(node.output) == ["a", "b"]
    found = {a.name: (a.ref_attr_name, a.type, a.i) for a in node.attribute}
    assert found == {"axis": ("", AttributeProto.INT, 1), "split": ("pieces", AttributeProto.INTS, 0)}
