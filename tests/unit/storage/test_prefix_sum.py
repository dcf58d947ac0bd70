from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.storage import prefix_sum
from onnxprune.storage.body import constant


def bound(nodes: list[onnx.NodeProto], given: dict[str, Any]) -> None:
    """Put the attributes of a node in the place of the references to them, as inlining does."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                attribute.CopyFrom(helper.make_attribute(attribute.name, given[attribute.ref_attr_name]))


def run(stored: Any, opset: int, given: dict[str, Any]) -> Any:
    """Return the sums that ONNX Runtime makes of the bytes themselves."""
    nodes = [
        *constant("shape", np.array([1, -1], np.int64), opset),
        helper.make_node("Split", ["column_of_starts"], ["start"], axis=1, split=[1]),
        *prefix_sum.rows("x", "r", opset),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        *prefix_sum.sums("f", "start", "y", "shape", axis=1),
    ]
    nodes[:0] = prefix_sum.given_tensor("starts", "column_of_starts", np.int32, opset)
    bound(nodes, given)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.UINT8, ["m"])], [info("y", TensorProto.INT32, None)]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return runtime.session(proto, threads=1).run(None, {"x": stored})[0]


@pytest.mark.parametrize("opset", [7, 10])
@pytest.mark.parametrize("size", [1, 127, 128, 129, 1000])
def test_sums_are_those_of_numpy(size: int, opset: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    found = run(stored, opset, prefix_sum.values(stored[None], opset))
    assert found.dtype == np.int32 and found.shape == (1, size)
    assert found[0].tolist() == np.cumsum(stored, dtype=np.int32).tolist()


def test_the_largest_sums_are_exact() -> None:
    """Rows start above 2^24, which float32 could not count by ones."""
    stored = np.full(70_000, 255, np.uint8)
    stored[-1] = 1
    found = run(stored, 10, prefix_sum.values(stored[None], 10))
    assert found[0, -2:].tolist() == [255 * 69_999, 255 * 69_999 + 1] and found[0, -1] > 2**24


def test_parts_follow_each_other() -> None:
    parts = np.array([[1] * 130, [2] * 130], np.uint8)
    given = prefix_sum.values(parts, 9)
    starts = numpy_helper.to_array(given["starts"])
    assert starts.dtype == np.int32 and starts.tolist() == [[0, 130], [128, 130 + 256]]
    assert given["pieces"] == [130, 126]
    filler = numpy_helper.to_array(given["filler"])
    assert filler.dtype == np.uint8 and filler.tolist() == [0] * 126


def test_full_rows_get_another_one() -> None:
    """No piece is empty."""
    assert prefix_sum.values(np.ones((1, 128), np.uint8), 9)["pieces"] == [128, 128]
