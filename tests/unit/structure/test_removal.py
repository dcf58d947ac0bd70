"""What removal keeps: the interface, metadata, doc strings; tables of types; old listings of initializers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from onnxprune.interface import interface_differences
from onnxprune.model import Model
from onnxprune.structure.find import find_structure
from onnxprune.structure.removal import remove_units
from tests.unit.structure.graphs import CONV, FIRST, IMAGE, LAST, assert_removal_is_masking, graph

TEXT = f"{IMAGE} {{ {CONV} b = Relu(a) y = Conv(b, w9) }}"


def half(model: Model, feeds: dict[str, np.ndarray]) -> Model:
    structure = find_structure(model, feeds)
    return remove_units(model, structure, {g.name: np.arange(g.units) % 2 == 0 for g in structure.groups})


def test_all_else_is_kept() -> None:
    model, feeds = graph(TEXT, FIRST | LAST)
    proto = model.proto
    proto.metadata_props.add(key="author", value="somebody")
    proto.graph.node[0].doc_string, proto.graph.node[0].name = "the first", "first"
    proto.graph.node[0].metadata_props.add(key="k", value="v")
    proto.graph.initializer[0].doc_string = "a weight"
    note = proto.graph.quantization_annotation.add(tensor_name="a")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    smaller = half(model, feeds)
    assert interface_differences(model, smaller) == ()
    node = smaller.graph.node[0]
    assert (node.doc_string, node.name, node.metadata_props[0].key) == ("the first", "first", "k")
    assert smaller.graph.initializer[0].doc_string == "a weight"
    assert smaller.graph.quantization_annotation[0].tensor_name == "a"
    assert smaller.array("w0").shape == (4, 3, 3, 3) and smaller.array("w9").shape == (5, 4, 1, 1)


def test_types_in_between() -> None:
    model, feeds = graph(TEXT, FIRST | LAST)
    float32 = onnx.TensorProto.FLOAT
    model.graph.value_info.append(helper.make_tensor_value_info("a", float32, ["N", 8, None, None]))
    model.graph.value_info.append(helper.make_tensor_value_info("b", float32, ["N", "channels", 4, 5]))
    smaller = half(model, feeds)
    dims = {value.name: value.type.tensor_type.shape.dim for value in smaller.graph.value_info}
    assert dims["a"][1].dim_value == 4 and not dims["b"][1].dim_param and dims["b"][2].dim_value == 4


def test_constant_nodes_and_listed_initializers() -> None:
    model, feeds = graph(TEXT, FIRST | LAST)
    tensor = model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w0"], value=tensor))
    del model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info("w9", onnx.TensorProto.FLOAT, [5, 8, 1, 1]))
    model.proto.ir_version = 3
    model.reindex()
    smaller = half(model, feeds)
    assert smaller.array("w0").shape[0] == 4
    assert smaller.graph.input[1].type.tensor_type.shape.dim[1].dim_value == 4
    assert_removal_is_masking(model, feeds)


def test_nothing_to_remove() -> None:
    model, feeds = graph(TEXT, FIRST | LAST)
    assert remove_units(model, find_structure(model, feeds), {}).to_bytes() == model.to_bytes()


def test_new_constants_in_an_old_model() -> None:
    """Before IR version 4 each initializer is an input as well; a new one would have to be."""
    text = f"""(float[N, 3, H, W] x) => (float[N, 4] y) {{ {CONV} b = GlobalAveragePool(a) c = Reshape(b, to)
        y = Gemm(c, w9, b9) }}"""
    model, feeds = graph(text, FIRST | {"to": [-1, 8], "w9": (8, 4), "b9": (4,)}, 8)
    for tensor in model.graph.initializer:
        kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(kind)
    model.proto.ir_version = 3
    del model.proto.opset_import[1:]
    model.reindex()
    assert assert_removal_is_masking(model, feeds).groups
    onnx.checker.check_model(half(model, feeds).proto)


def test_an_output_that_is_declared_with_another_number_of_axes() -> None:
    text = """(float[N, 6, 8] x) => (float[N] y) { a = MatMul(x, w0) b = MatMul(a, w1)
        u = com.microsoft.Gelu(b) s = Shape(u) y = Reshape(u, s) }"""
    model, feeds = graph(text, {"w0": (8, 8), "w1": (8, 4)})
    assert assert_removal_is_masking(model, feeds).groups
