from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.interface import OWN
from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN, Packed, np_dtype, onnx_type, round_to_fp16
from onnxprune.storage.functions import make_function


def test_the_table_is_consistent() -> None:
    for name, form in FORMS.items():
        assert form.name == name and form.inputs
    prefixes = [form.prefix for form in FORMS.values()]
    assert not [(a, b) for a in prefixes for b in prefixes if a != b and a.startswith(b)]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_inverts_itself_and_has_a_body(form: object) -> None:
    array = np.array([[0, 1, 0, 0], [2, 0, 0, -3]], np.float32)
    packed = form.encode(array, values="same")  # type: ignore[attr-defined]
    assert len(packed.tensors) == len(form.inputs)  # type: ignore[attr-defined]
    assert np.array_equal(form.decode(packed, "w"), array)  # type: ignore[attr-defined]
    suffix = form.decode_op(array.shape)  # type: ignore[attr-defined]
    assert make_function(form, suffix, form.min_opset, cast=False).node  # type: ignore[arg-type, attr-defined]


def test_domain_is_the_one_that_the_interface_ignores() -> None:
    assert DOMAIN == OWN


@pytest.mark.parametrize("name", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8"])
def test_types_map_both_ways(name: str) -> None:
    number = TensorProto.DataType.Value(name)
    assert onnx_type(np_dtype(number)) == number
    assert np_dtype(TensorProto.BFLOAT16) == np.dtype(ml_dtypes.bfloat16)


def test_fp16_rounds_all_or_nothing() -> None:
    fits, overflows = np.array([65519, 1e-9], np.float32), np.array([65520, 1], np.float32)
    assert round_to_fp16(fits).dtype == np.float16 and round_to_fp16(fits).tolist() == [65504, 0]
    assert round_to_fp16(overflows) is overflows
    assert round_to_fp16(np.array([np.inf, np.nan], np.float32)).dtype == np.float16


def test_cast_compares_the_last_tensor_with_the_weight() -> None:
    values = np.zeros(1, np.float16)
    assert Packed((np.zeros(1, np.uint8), values), (1,), TensorProto.FLOAT).cast
    assert not Packed((np.zeros(1, np.uint8), values), (1,), TensorProto.FLOAT16).cast
