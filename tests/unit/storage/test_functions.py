from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import ModelError
from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN, VERSION
from onnxprune.storage.functions import (
    CONSUMERS,
    consumer_of,
    consumer_with,
    make_function,
    operands,
    parse_op,
    set_shape,
)

BITMAP = FORMS["bitmap"]
SUFFIXES = [*(c.suffix for c in CONSUMERS), "Decode", "DecodeRagged"]


def node(text: str) -> onnx.NodeProto:
    return onnx.parser.parse_node(text)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("opset", [11, 12, 17, 23])
@pytest.mark.parametrize("cast", [False, True])
def test_functions_are_valid(suffix: str, opset: int, cast: bool) -> None:
    function = make_function(BITMAP, suffix, opset, cast=cast)
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 8, {"": opset}
    onnx.checker.check_function(function, context)
    assert (function.domain, function.name) == (DOMAIN, f"Bitmap{suffix}")
    assert function.opset_import[0].version == opset
    assert list(function.attribute)[:2] == ["shape", "dtype"]


def test_signatures() -> None:
    """What kernels of the same names rely on."""
    found = {
        s: (list(f.input), list(f.output), list(f.attribute))
        for s in SUFFIXES
        for f in [make_function(BITMAP, s, 17, cast=False)]
    }
    gemm = ["shape", "dtype", "alpha", "beta", "transA", "transB"]
    conv = ["shape", "dtype", "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]
    assert found == {
        "MatMul": (["X", "mask", "values"], ["Y"], ["shape", "dtype"]),
        "LeftMatMul": (["X", "mask", "values"], ["Y"], ["shape", "dtype"]),
        "Gemm": (["X", "mask", "values"], ["Y"], gemm),
        "GemmBias": (["X", "mask", "values", "C"], ["Y"], gemm),
        "Conv": (["X", "mask", "values"], ["Y"], conv),
        "ConvBias": (["X", "mask", "values", "B"], ["Y"], conv),
        "Decode": (["mask", "values"], ["W"], ["shape", "dtype"]),
        "DecodeRagged": (["mask", "values"], ["W"], ["shape", "dtype"]),
    }  # fmt: skip


@pytest.mark.parametrize("opset", [12, 17, 22])  # not 11: the evaluator cannot bind a tensor to an attribute
@pytest.mark.parametrize("values", ["same", "fp16"])
@pytest.mark.parametrize("shape", [(4, 8), (3, 5), (17,), (2, 1, 3, 4)])
def test_body_decodes_like_numpy_in_another_runtime(opset: int, values: str, shape: tuple[int, ...]) -> None:
    """onnx's reference evaluator knows nothing of ONNX Runtime."""
    rng = np.random.default_rng(0)
    array = np.where(rng.random(shape) < 0.3, rng.standard_normal(shape), 0).astype(np.float32)
    packed = BITMAP.encode(array, values=values)
    suffix = BITMAP.decode_op(shape)
    call = helper.make_node(f"Bitmap{suffix}", ["mask", "values"], ["W"], domain=DOMAIN)
    set_shape(call, packed.shape, packed.data_type, opset)
    inits = [numpy_helper.from_array(t, n) for t, n in zip(packed.tensors, BITMAP.inputs, strict=True)]
    output = helper.make_tensor_value_info("W", TensorProto.FLOAT, shape)
    model = helper.make_model(
        helper.make_graph([call], "g", [], [output], inits),
        functions=[make_function(BITMAP, suffix, opset, cast=packed.cast)],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    found = ReferenceEvaluator(model).run(None, {})[0]
    assert found.dtype == np.float32 and np.array_equal(found, BITMAP.decode(packed, "w"))


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
    for name in ("Bitmap", "BitmapRelu", "MatMul", "ZipConv", ""):
        with pytest.raises(ModelError, match=f"onnxprune.{name}"):
            parse_op(name, FORMS)


def test_decode_ops_have_no_consumer() -> None:
    assert consumer_with("Decode") is None


@pytest.mark.parametrize(("opset", "extra"), [(11, ["shape_tensor"]), (12, [])])
def test_opset_11_needs_the_shape_as_a_tensor(opset: int, extra: list[str]) -> None:
    call = helper.make_node("BitmapDecode", [], [])
    set_shape(call, (2, 3), TensorProto.FLOAT, opset)
    assert [a.name for a in call.attribute] == ["shape", "dtype", *extra]
    assert list(call.attribute[0].ints) == [2, 3] and call.attribute[1].i == TensorProto.FLOAT
    if extra:
        assert numpy_helper.to_array(call.attribute[2].t).tolist() == [2, 3]


def test_functions_stay_small() -> None:
    assert all(
        make_function(BITMAP, s, 17, cast=True).ByteSize() < 3500 for s in SUFFIXES
    )  # the table is 2048
