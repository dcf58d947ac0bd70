from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from onnxprune.calibration.inputs import input_specs, is_float, model_inputs
from onnxprune.errors import ModelError
from onnxprune.model import Model


def model(inputs: str, outputs: str = "int64[1] y") -> Model:
    """A model with these inputs and outputs, in parser text; what it computes does not matter here."""
    body = f"({outputs}) {{ y = Constant <value_ints = [1]> () }}"
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => {body}'
    return Model(onnx.parser.parse_model(text))


def test_specs_have_every_kind_of_dimension() -> None:
    specs = input_specs(model("float[N, 3, ?, 8] x, int64 s, bfloat16 b"))
    assert specs[0].shape == ("N", 3, None, 8)
    assert str(specs[0]) == "x: float32[N,3,?,8]"
    assert specs[1].shape == ()
    assert specs[2].dtype.name == "bfloat16" and is_float(specs[2].dtype)


def test_initializers_are_no_inputs() -> None:
    proto = model("float[N, 4] x, float[4] w").proto
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4]))
    assert [s.name for s in input_specs(Model(proto))] == ["x"]


def test_zero_and_negative_dimensions_are_unknown() -> None:
    proto = model("float[N, 4] x").proto
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 0
    assert input_specs(Model(proto))[0].shape == (None, None)


def test_unknown_rank_is_told_from_a_scalar() -> None:
    specs = input_specs(model("float[] x, float y"))
    assert (specs[0].ranked, specs[1].ranked) == (False, True)
    assert specs[0].type == "float32[...]"


def test_strings_are_objects() -> None:
    spec = input_specs(model("string[N] words"))[0]
    assert spec.dtype == np.dtype(object) and spec.type == "string[N]"


def test_a_sequence_input_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="input 'x' is sequence"):
        input_specs(model("seq(float[N]) x"))


def test_an_untyped_input_is_refused() -> None:
    proto = model("float[N] x").proto
    proto.graph.input[0].ClearField("type")
    with pytest.raises(ModelError, match="untyped"):
        input_specs(Model(proto))


def test_an_unknown_element_type_is_refused() -> None:
    proto = model("float[N] x").proto
    proto.graph.input[0].type.tensor_type.elem_type = 999
    with pytest.raises(ModelError, match="999"):
        input_specs(Model(proto))


def test_no_inputs_at_all() -> None:
    with pytest.raises(ModelError, match="no inputs"):
        model_inputs(model(""))


@pytest.mark.parametrize(
    ("inputs", "batched", "fixed"),
    [
        ("float[N, 3, 8, 8] x", "x", None),
        ("float[1, 3, 8, 8] x", "x", 1),
        ("float[8, 16] x, int64[8] y", "x y", 8),
        ("float[?, 3, 8, 8] x", "x", None),
        ("int64[batch, seq] a, int64[batch, seq] b", "a b", None),
        ("int64[unk_1, unk_2] a, int64[unk_3, unk_4] b", "a b", None),  # names of no meaning
        ("float[N, 4] x, float[3] scales", "x", None),  # scales are shared
        ("float[batch, 4] x, int64[steps] t", "x", None),  # only one is called batch
        ("float[text_batch, 4] x, float[image_batch, 4] y", "x y", None),
        ("float[N, 4] x, float s", "x", None),  # a scalar has no batch axis
        ("int64[batch, seq] a, float[seq, seq] bias", "a", None),  # a later axis of another input
        ("float[unk__12, 4] x, float[unk__15, 4] y", "x y", None),
        # No common first axis: a feed is never taken apart.
        ("float[nodes, 4] x, int64[edges, 2] pairs", "", None),  # which refer to each other
        ("float[seq, batch, 8] x, float[2, batch, 16] h", "", None),
        ("float[seq, 64] x", "", None),
        ("float[?] audio", "", None),
        ("float[?, ?] x, float[2, ?, 128] state", "", None),
        ("float[3, 224, 224] x", "", None),  # one picture, not three samples
        ("float[224, 224, 3] x", "", None),
        ("float[2, 4] x, float[3, 4] y", "", None),
    ],
)
def test_batch_axis(inputs: str, batched: str, fixed: int | None) -> None:
    found = model_inputs(model(inputs))
    assert found.batched == frozenset(batched.split())
    assert found.fixed == fixed
    assert found.rows == (fixed or 1)


@pytest.mark.parametrize(
    ("inputs", "outputs", "fixed"),
    [
        ("int64[batch, seq] x, bool[batch, seq] mask", "float[1, seq, 2] y", 1),
        ("float[batch, 4] x", "float[1, 2] y, float[1, 8, 3] z", 1),
        ("float[batch, 4] x", "float[batch, 2] y, float[1, 8, 3] z", None),
        ("float[batch, 4] x", "float[2, 2] y", None),
        ("float[batch, 4] x", "float[1] y", None),  # a mean over the batch
        ("float[?, 4] x", "float[1, 2] y", None),  # what is pooled may as well be steps
        ("int64[batch, seq] x", "float[?, seq, 2] y", None),
    ],
)
def test_a_batch_that_is_free_in_name_only(inputs: str, outputs: str, fixed: int | None) -> None:
    assert model_inputs(model(inputs, outputs)).fixed == fixed
