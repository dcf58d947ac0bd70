"""Differences a caller would notice, and those it would not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.interface import interface_differences, type_text
from onnxprune.model import Model

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 3] x, int64[N] i) => (float[N, 3] y, int64[N] j) { y = Relu(x) j = Identity(i) }"""


def parse() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def tensor(kind: int, dims: list | None) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(kind, dims)


def differences(change) -> tuple[str, ...]:
    other = parse()
    change(other)
    return interface_differences(Model(parse()), Model(other))


def test_equal_models() -> None:
    assert differences(lambda m: None) == ()


def test_nodes_and_weights_are_no_part_of_it() -> None:
    def change(m: onnx.ModelProto) -> None:
        m.graph.node[0].name = "other"
        m.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3), "w"))
        m.ir_version = 10
        m.producer_name = "someone"

    assert differences(change) == ()


def test_our_domain_and_keys_are_ours() -> None:
    def change(m: onnx.ModelProto) -> None:
        m.opset_import.add(domain="onnxprune", version=1)
        m.metadata_props.add(key="onnxprune.recipe.recipe", value="{}")

    assert differences(change) == ()


def test_alias_of_the_default_domain() -> None:
    def change(m: onnx.ModelProto) -> None:
        m.opset_import[0].domain = "ai.onnx"

    assert differences(change) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 4),
         "input 'x' was FLOAT[N,3], is FLOAT[N,4]"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_param", "M"),
         "input 'x' was FLOAT[N,3], is FLOAT[M,3]"),
        (lambda m: m.graph.output[0].type.tensor_type.__setattr__("elem_type", 10),
         "output 'y' was FLOAT[N,3], is FLOAT16[N,3]"),
        (lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"),
         "output 'y' was FLOAT[N,3], is FLOAT[...]"),
        (lambda m: m.opset_import[0].__setattr__("version", 18), "opset 'ai.onnx' was 17, is 18"),
        (lambda m: m.opset_import.add(domain="com.microsoft", version=1), "opset 'com.microsoft' is new"),
        (lambda m: m.metadata_props.add(key="k", value="v"), "metadata 'k' is new"),
        (lambda m: m.graph.output.pop(1), "output 'j' is missing"),
        (lambda m: m.graph.output.reverse(), "the order of the outputs was y, j, is j, y"),
    ],
)  # fmt: skip
def test_what_a_caller_notices(change, words: str) -> None:
    assert differences(change) == (words,)


def test_long_metadata_is_cut() -> None:
    before, after = parse(), parse()
    before.metadata_props.add(key="labels", value="a" * 5000)
    after.metadata_props.add(key="labels", value="b" * 5000)
    (line,) = interface_differences(Model(before), Model(after))
    assert line.startswith("metadata 'labels' was aaa") and len(line) < 200


def test_inputs_with_a_default_are_no_part_of_it() -> None:
    before, after = parse(), parse()
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    before.graph.initializer.append(weight)
    before.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1]))
    assert interface_differences(Model(before), Model(after)) == ()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (tensor(1, ["N", None, 3]), "FLOAT[N,?,3]"),
        (tensor(1, None), "FLOAT[...]"),
        (tensor(1, []), "FLOAT[]"),
        (onnx.helper.make_sequence_type_proto(tensor(7, [2])), "sequence of INT64[2]"),
        (onnx.helper.make_optional_type_proto(tensor(7, [2])), "optional INT64[2]"),
        (onnx.helper.make_map_type_proto(7, tensor(1, [])), "map from INT64 to FLOAT[]"),
        (onnx.helper.make_sparse_tensor_type_proto(1, [3]), "sparse FLOAT[3]"),
        (onnx.TypeProto(), "untyped"),
        (tensor(999, [1]), "type 999[1]"),
    ],
)  # fmt: skip
def test_types_in_words(kind: onnx.TypeProto, text: str) -> None:
    assert type_text(kind) == text
