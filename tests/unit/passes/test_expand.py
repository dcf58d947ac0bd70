from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.model import Model
from onnxprune.passes.expand import NO_BIAS, expand
from onnxprune.storage.edit import Names
from onnxprune.storage.form import DOMAIN
from onnxprune.storage.sparse_functions import SparseOp, parse


def empty(*names: str) -> Names:
    graph = helper.make_graph([], "g", [], [])
    for name in names:
        graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), name))
    return Names(Model(helper.make_model(graph)))


def op_of(node: onnx.NodeProto) -> SparseOp:
    found = parse(node.op_type)
    assert found is not None
    return found


def test_values_and_attributes_are_the_nodes_own() -> None:
    inputs = ["x", "w_steps", "w", "b", "r"]
    node = helper.make_node("SparseGap4ConvAddClip", inputs, ["y"], name="conv", domain=DOMAIN, low=-1.0,
                            high=2.0, pads=[1, 1, 1, 1], group=2, shape=[4, 2, 3, 3], dtype=1)  # fmt: skip
    node.doc_string = "text"
    found = expand(node, op_of(node), "w", 17, empty("y_conv"))
    assert [n.op_type for n in found] == ["Conv", "Add", "Constant", "Constant", "Clip"]
    conv, add, low, high, clip = found
    assert list(conv.input) == ["x", "w", "b"] and list(add.input) == [conv.output[0], "r"]
    assert conv.output[0] == "y_conv_1"  # the other is taken
    assert {a.name: helper.get_attribute_value(a) for a in conv.attribute} == {"pads": [1] * 4, "group": 2}
    assert [float(numpy_helper.to_array(n.attribute[0].t)) for n in (low, high)] == [-1.0, 2.0]
    assert list(clip.input) == [add.output[0], low.output[0], high.output[0]] and list(clip.output) == ["y"]
    assert (conv.name, conv.doc_string, conv.domain) == ("conv", "text", "")
    assert len({n.name for n in found}) == len(found)


@pytest.mark.parametrize(
    ("op_type", "inputs"), [("SparseBitmapMatMul", ["mask", "w"]), ("DirectConv", ["w"])]
)
def test_a_bias_that_is_not_there(op_type: str, inputs: list[str]) -> None:
    node = helper.make_node(op_type, ["x", *inputs, f"w{NO_BIAS}"], ["y"], name="n", domain=DOMAIN)
    (found,) = expand(node, op_of(node), "dense", 17, empty())
    assert list(found.input) == ["x", "dense"] and list(found.output) == ["y"] and found.name == "n"
