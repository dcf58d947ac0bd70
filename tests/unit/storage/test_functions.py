from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import ModelError
from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN, VERSION, Form
from onnxprune.storage.functions import (
    CONSUMERS,
    consumer_of,
    consumer_with,
    form_attributes,
    make_function,
    operands,
    parse_op,
    same_value,
    set_attributes,
    stored_bytes,
)

BITMAP = FORMS["bitmap"]
GAPS = FORMS["gaps4"]
OPS = [
    (form, suffix) for form in FORMS.values() for suffix in (*(c.suffix for c in CONSUMERS), *form.decoders)
]


def node(text: str) -> onnx.NodeProto:
    return onnx.parser.parse_node(text)


@pytest.mark.parametrize(("form", "suffix"), OPS, ids=[form.prefix + suffix for form, suffix in OPS])
@pytest.mark.parametrize("opset", [7, 9, 11, 12, 17, 23])
@pytest.mark.parametrize("cast", [False, True])
def test_functions_are_valid(form: Form, suffix: str, opset: int, cast: bool) -> None:
    opset = max(opset, form.min_opset, 11 if suffix == "Gemm" else 0)  # before, Gemm has a C
    function = make_function(form, suffix, opset, cast=cast)
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 8, {"": opset}
    onnx.checker.check_function(function, context)
    assert (function.domain, function.name) == (DOMAIN, form.prefix + suffix)
    assert function.opset_import[0].version == opset
    assert list(function.attribute)[:2] == ["shape", "dtype"]
    # The bitmap's table takes 2048, older opsets have two, below 9 each number takes two bytes
    assert function.ByteSize() < (3500 if opset >= 11 else 8000 if opset >= 9 else 12500)


def test_signatures() -> None:
    """What kernels of the same names rely on."""
    functions = [make_function(form, suffix, 17, cast=False) for form, suffix in OPS]
    found = {f.name: (list(f.input), list(f.output), list(f.attribute)) for f in functions}
    gemm = ["alpha", "beta", "transA", "transB"]
    conv = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]
    wanted = {}
    for prefix, packed, own in (
        ("Bitmap", ["mask", "values"], []),
        ("Gap4", ["steps", "values"], ["span"]),
        ("Gap8", ["steps", "values"], ["span"]),
    ):
        shared = ["shape", "dtype", *own]
        wanted |= {
            f"{prefix}MatMul": (["X", *packed], ["Y"], shared),
            f"{prefix}LeftMatMul": (["X", *packed], ["Y"], shared),
            f"{prefix}Gemm": (["X", *packed], ["Y"], [*shared, *gemm]),
            f"{prefix}GemmBias": (["X", *packed, "C"], ["Y"], [*shared, *gemm]),
            f"{prefix}Conv": (["X", *packed], ["Y"], [*shared, *conv]),
            f"{prefix}ConvBias": (["X", *packed, "B"], ["Y"], [*shared, *conv]),
            f"{prefix}Decode": (packed, ["W"], shared),
        }
    wanted["BitmapDecodeRagged"] = (["mask", "values"], ["W"], ["shape", "dtype"])
    assert found == wanted


# Not 11 and older: the evaluator cannot bind a tensor to an attribute. test_pack inlines those first.
@pytest.mark.parametrize("opset", [12, 17, 22])
@pytest.mark.parametrize("values", ["same", "fp16"])
@pytest.mark.parametrize("shape", [(4, 8), (3, 5), (17,), (2, 1, 3, 4)])
@pytest.mark.parametrize(
    "name", ["bitmap"]
)  # the evaluator's MaxUnpool wants the kernel's size to be its stride
def test_body_decodes_like_numpy_in_another_runtime(
    name: str, opset: int, values: str, shape: tuple[int, ...]
) -> None:
    """onnx's reference evaluator knows nothing of ONNX Runtime."""
    rng = np.random.default_rng(0)
    array = np.where(rng.random(shape) < 0.3, rng.standard_normal(shape), 0).astype(np.float32)
    form = FORMS[name]
    packed = form.encode(array, values=values)
    suffix = form.decode_op(shape)
    call = helper.make_node(form.prefix + suffix, form.inputs, ["W"], domain=DOMAIN)
    set_attributes(call, form, packed, opset)
    inits = [numpy_helper.from_array(t, n) for t, n in zip(packed.tensors, form.inputs, strict=True)]
    output = helper.make_tensor_value_info("W", TensorProto.FLOAT, shape)
    model = helper.make_model(
        helper.make_graph([call], "g", [], [output], inits),
        functions=[make_function(form, suffix, opset, cast=packed.cast)],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    found = ReferenceEvaluator(model).run(None, {})[0]
    assert found.dtype == np.float32 and np.array_equal(found, form.decode(packed, "w"))


class TestConsumerOf:
    @pytest.mark.parametrize(
        ("text", "slot", "suffix"),
        [
            ("y = MatMul(x, w)", 1, "MatMul"),
            ("y = MatMul(w, x)", 0, "LeftMatMul"),
            ("y = Gemm(x, w)", 1, "Gemm"),
            ("y = Gemm<alpha=2.0>(x, w, c)", 1, "GemmBias"),
            ("y = Conv(x, w)", 1, "Conv"),
            ("y = Conv(x, w, b)", 1, "ConvBias"),
        ],
    )
    def test_what_is_fused(self, text: str, slot: int, suffix: str) -> None:
        found = consumer_of(node(text), slot)
        assert found is not None and found.suffix == suffix and consumer_with(suffix) is found

    @pytest.mark.parametrize(
        ("text", "slot"),
        [
            ("y = Gemm(w, x)", 0),
            ("y = Gemm(x, v, w)", 2),
            ("y = Conv(w, x)", 0),
            ("y = Add(x, w)", 1),
            ("y = Conv<vendor=1>(x, w)", 1),
            ("y = com.microsoft.MatMul(x, w)", 1),
            ("y, z = MatMul(x, w)", 1),
        ],
    )
    def test_what_is_not(self, text: str, slot: int) -> None:
        assert consumer_of(node(text), slot) is None

    def test_inputs_in_subgraphs_have_no_slot(self) -> None:
        assert consumer_of(node("y = MatMul(x, w)"), -1) is None


def test_operands_end_with_the_last_that_is_given() -> None:
    call = helper.make_node("Conv", ["x", "w", "", ""], ["y"])
    assert operands(call) == ["x", "w"]


def test_operators_of_no_form_are_refused() -> None:
    assert parse_op("BitmapConvBias", FORMS) == (BITMAP, "ConvBias")
    assert parse_op("Gap4Decode", FORMS) == (GAPS, "Decode")
    for name in ("Bitmap", "BitmapRelu", "Gap4DecodeRagged", "MatMul", "ZipConv", ""):
        with pytest.raises(ModelError, match=f"onnxprune.{name}"):
            parse_op(name, FORMS)


def test_decode_ops_have_no_consumer() -> None:
    assert consumer_with("Decode") is None


@pytest.mark.parametrize(
    ("opset", "extra"),
    [(9, ["shape_tensor", "starts", "filler", "pieces"]), (11, ["shape_tensor"]), (12, [])],
)
def test_old_opsets_need_more_attributes(opset: int, extra: list[str]) -> None:
    call = helper.make_node("Gap4Decode", [], [])
    set_attributes(
        call, GAPS, GAPS.encode(np.array([[0, 1, 0], [0, 0, 0]], np.float32), values="same"), opset
    )
    found = {a.name: helper.get_attribute_value(a) for a in call.attribute}
    assert list(found) == ["shape", "span", "dtype", *extra]
    assert (found["shape"], found["span"], found["dtype"]) == ([2, 3], [5], TensorProto.FLOAT)
    assert form_attributes(GAPS, opset) == ["shape", "dtype", "span", *extra]
    if extra:
        assert numpy_helper.to_array(found["shape_tensor"]).tolist() == [2, 3]


def test_stored_bytes_count_what_old_opsets_add() -> None:
    packed = BITMAP.encode(np.ones((64, 64), np.float32), values="same")  # 512 bytes of mask: five rows
    assert stored_bytes(BITMAP, packed, 11) == packed.nbytes == 512 + 4 + 4 * 64 * 64
    assert stored_bytes(BITMAP, packed, 9) == packed.nbytes + 5 * 4 + 128
    assert stored_bytes(BITMAP, packed, 7) == packed.nbytes + 5 * 8 + 256


def test_same_value() -> None:
    def a(value: Any) -> onnx.AttributeProto:
        return helper.make_attribute("a", value)

    raw = numpy_helper.from_array(np.array([1, 2], np.int32))
    typed = helper.make_tensor("t", TensorProto.INT32, [2], [1, 2])
    assert same_value(a([1, 2]), a([1, 2])) and not same_value(a([1, 2]), a([1, 3]))
    assert same_value(a(raw), a(typed)) and not same_value(a(raw), a([1, 2]))
    assert not same_value(a(raw), a(numpy_helper.from_array(np.array([1, 3], np.int32))))
