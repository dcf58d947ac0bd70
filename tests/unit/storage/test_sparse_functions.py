from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN, VERSION, Form, Packed
from onnxprune.storage.functions import set_attributes
from onnxprune.storage.reference import run
from onnxprune.storage.sparse_functions import (
    ACTIVATIONS,
    Epilogue,
    SparseOp,
    make_sparse_function,
    number_attributes,
    parse,
    tail,
)

PREFIXES = {form.prefix: form for form in FORMS.values()}
PLAIN = [Epilogue(residual, activation) for residual in (False, True) for activation in ("", *ACTIVATIONS)]
NORMS = [Epilogue(residual, norm=True) for residual in (False, True)]
OPS = [
    SparseOp(consumer, prefix, end)
    for prefix in PREFIXES
    for consumer in ("MatMul", "Gemm", "Conv")
    for end in (PLAIN + NORMS if consumer == "MatMul" else PLAIN)
    if not (consumer == "Gemm" and end.residual)
] + [SparseOp("Conv", "", end) for end in PLAIN]
# Every epilogue with every consumer, each with one of the forms in turn: the forms have tests of their own.
COVER = [
    op
    for number, (_, ops) in enumerate(
        itertools.groupby(sorted(OPS, key=lambda o: (o.consumer, o.epilogue.suffix)), key=lambda o: (
            o.consumer, o.epilogue.suffix))
    )
    for op in [list(ops)[number % 3]]
] + [SparseOp("Conv", "", end) for end in PLAIN]  # fmt: skip
OPSETS = (7, 9, 11, 12, 17, 20)


def possible(ops: Sequence[SparseOp], opsets: Sequence[int]) -> list[Any]:
    """Every op at every opset that can hold it; test_refusals says which cannot."""
    return [pytest.param(op, n, id=f"{op.name}-{n}") for op in ops for n in opsets if not op.refusal(n)]


def test_refusals() -> None:
    refused = {op.name for op in OPS if op.refusal(8)}
    assert refused == {op.name for op in OPS if op.epilogue.activation == "Gelu" or "Gap" in op.prefix}
    assert not any(op.refusal(n) for op in OPS for n in OPSETS[1:])
    assert next(op.refusal(8) for op in OPS if op.name in refused) == "opset 8, wanted 9"


def test_the_number_of_ops() -> None:
    assert len(OPS) == len({op.name for op in OPS}) == 125


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_names_are_parsed_back(op: SparseOp) -> None:
    assert parse(op.name, PREFIXES) == parse(op.name) == op


@pytest.mark.parametrize(
    "name",
    [
        "BitmapMatMul", "SparseMatMul", "SparseGap4MatMulReluNorm", "SparseGap4ConvNorm", "DirectConvNorm",
        "SparseGap4GemmAdd", "SparseGap4GemmNorm", "DirectMatMul", "SparseGap4MatMulReluAdd", "DirectConv1",
        "SparseGap4MatMulGeluRelu", "SparseGap4Decode", "sparseGap4MatMul", "",
    ],
)  # fmt: skip
def test_other_names(name: str) -> None:
    assert parse(name, PREFIXES) is None


def test_a_form_that_is_not_known() -> None:
    assert parse("SparseGap16MatMul", PREFIXES) is None
    assert parse("SparseGap16MatMul") == SparseOp("MatMul", "Gap16")


def test_what_cannot_be_named() -> None:
    for wrong in (("Gemm", "Gap4", Epilogue(True)), ("Conv", "", Epilogue(norm=True)), ("MatMul", "")):
        with pytest.raises(AssertionError):
            SparseOp(*wrong)


@pytest.mark.parametrize(("op", "opset"), possible(OPS, (*OPSETS, 13, 23)))
def test_functions_are_valid(op: SparseOp, opset: int) -> None:
    function = make_sparse_function(op, PREFIXES.get(op.prefix), opset, cast=opset == 13)
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 8, {"": opset}
    onnx.checker.check_function(function, context)
    assert (function.domain, function.name, list(function.output)) == (DOMAIN, op.name, ["Y"])


def test_signatures() -> None:
    """What kernels of the same names rely on."""
    form = FORMS["gaps4"]
    conv = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]
    wanted = {
        "SparseGap4MatMul": (["B"], []),
        "SparseGap4MatMulAddNorm": (["B", "R", "gamma", "beta"], ["epsilon"]),
        "SparseGap4GemmGelu": (["B"], ["transB"]),
        "SparseGap4ConvAddClip": (["B", "R"], [*conv, "low", "high"]),
    }
    for name, (inputs, attributes) in wanted.items():
        op = parse(name)
        assert op is not None
        function = make_sparse_function(op, form, 17, cast=False)
        assert list(function.input) == ["X", "steps", "values", *inputs]
        assert list(function.attribute) == ["shape", "dtype", "span", *attributes]
    direct = make_sparse_function(SparseOp("Conv", "", Epilogue(True)), None, 17, cast=False)
    assert list(direct.input) == ["X", "W", "B", "R"] and list(direct.attribute) == conv


@pytest.mark.parametrize(
    ("op", "opset", "fits"),
    [
        (SparseOp("MatMul", "Bitmap"), 6, False),
        (SparseOp("MatMul", "Bitmap"), 7, True),
        (SparseOp("MatMul", "Gap4"), 8, False),
        (SparseOp("MatMul", "Gap4"), 9, True),
        (SparseOp("Conv", "", Epilogue(activation="Clip")), 7, True),
        (SparseOp("MatMul", "Bitmap", Epilogue(norm=True)), 7, True),
        (SparseOp("MatMul", "Bitmap", Epilogue(activation="Gelu")), 8, False),
    ],
)
def test_opsets_that_cannot_hold_it(op: SparseOp, opset: int, fits: bool) -> None:
    assert (op.refusal(opset) == "") is fits


def sparse(*shape: int) -> Any:
    rng = np.random.default_rng(shape)
    return (rng.standard_normal(shape) * (rng.random(shape) < 0.3)).astype(np.float32)


def case(op: SparseOp, opset: int, values: str = "same") -> tuple[onnx.ModelProto, dict[str, Any], Any]:
    """Return a model of one node, its feed and the output of the numpy reference."""
    rng = np.random.default_rng(5)
    conv, form = op.consumer == "Conv", PREFIXES.get(op.prefix)
    weight = sparse(8, 2, 3, 3) if conv else sparse(16, 24)
    x = rng.standard_normal((2, 4, 7, 6) if conv else (9, 16) if op.consumer == "Gemm" else (2, 5, 16))
    features = 8 if conv else 24
    node = helper.make_node(op.name, [], ["y"], domain=DOMAIN)
    if conv:
        settings = {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 1]}
        node.attribute.extend(helper.make_attribute(k, v) for k, v in settings.items())
        node.attribute.append(helper.make_attribute("group", 2))
        node.attribute.append(helper.make_attribute("auto_pad", "NOTSET"))
    if op.consumer == "Gemm":
        weight = sparse(24, 16)
        node.attribute.append(helper.make_attribute("transB", 1))
    numbers = {"low": -0.5, "high": 6.0, "epsilon": 1e-3}
    node.attribute.extend(number_attributes({name: numbers[name] for name in op.numbers()}, opset))
    constants: dict[str, Any] = {"W": weight}
    packed: Packed | None = None
    if form is not None:
        packed = form.encode(weight, values=values)
        set_attributes(node, form, packed, opset)
        constants = dict(zip(form.inputs, packed.tensors, strict=True))
    for name in op.tail_inputs():
        if name != "R":
            constants[name] = rng.standard_normal(features).astype(np.float32)
    feed = {"X": x.astype(np.float32)}
    shape = (2, 8, 4, 6) if conv else (*x.shape[:-1], 24)
    if op.epilogue.residual:
        feed["R"] = rng.standard_normal(shape).astype(np.float32)
    node.input.extend(["X", *list(constants)[: 1 if form is None else 2], *op.tail_inputs()])
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [info(name, TensorProto.FLOAT, list(a.shape)) for name, a in feed.items()],
        [info("y", TensorProto.FLOAT, list(shape))],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    proto = helper.make_model(
        graph,
        ir_version=8,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[make_sparse_function(op, form, opset, cast=packed is not None and packed.cast)],
    )
    return proto, feed, run(node, [{**constants, **feed}[name] for name in node.input])


@pytest.mark.parametrize(("op", "opset"), possible(COVER, OPSETS))
def test_body_computes_what_numpy_does(op: SparseOp, opset: int) -> None:
    proto, feed, wanted = case(op, opset)
    onnx.checker.check_model(proto)
    (found,) = runtime.session(proto, threads=1, kernels=False).run(None, feed)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_half_precision_values_are_widened(form: Form) -> None:
    proto, feed, wanted = case(SparseOp("MatMul", form.prefix), 17, "fp16")
    assert proto.graph.initializer[1].data_type == TensorProto.FLOAT16
    (found,) = runtime.session(proto, threads=1, kernels=False).run(None, feed)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


# The same as exporters write it, with a dense weight.
DENSE = {
    "SparseGap4MatMul": "m = MatMul(X, W) y = Add(m, B)",
    "SparseBitmapMatMulGelu": """m = MatMul(X, W) h = Add(B, m) d = Div(h, root) e = Erf(d) a = Add(e, one)
        p = Mul(h, a) y = Mul(p, half)""",
    "SparseGap8MatMulGeluTanh": """m = MatMul(X, W) h = Add(B, m) q = Pow(h, three) c = Mul(q, cubic)
        s = Add(h, c) t = Mul(s, pi) u = Tanh(t) v = Add(u, one) p = Mul(h, half) y = Mul(p, v)""",
    "SparseGap4MatMulAddNorm": """m = MatMul(X, W) h = Add(B, m) s = Add(h, R)
        y = LayerNormalization <axis = -1> (s, gamma, beta)""",
    "SparseGap4Gemm": "y = Gemm <transB = 1> (X, W, B)",
    "SparseGap4GemmRelu": "h = Gemm <transB = 1> (X, W, B) y = Relu(h)",
    "SparseBitmapConvClip": "h = Conv <CONV> (X, W, B) y = Clip(h, low, high)",
    "SparseGap8ConvAddRelu": "h = Conv <CONV> (X, W, B) s = Add(h, R) y = Relu(s)",
    "DirectConvRelu": "h = Conv <CONV> (X, W, B) y = Relu(h)",
    "SparseGap4MatMulSilu": "m = MatMul(X, W) h = Add(m, B) s = Sigmoid(h) y = Mul(h, s)",
    "DirectConvHardSwish": """h = Conv <CONV> (X, W, B)
        s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (h) y = Mul(h, s)""",
}
SCALARS = {"root": 2**0.5, "one": 1, "half": 0.5, "three": 3, "cubic": 0.044715, "pi": 0.7978846, "low": -0.5}


def exported(sparse_model: onnx.ModelProto, text: str, op: SparseOp) -> onnx.ModelProto:
    """Return the standard model for the case of the same op."""
    form = PREFIXES.get(op.prefix)
    tensors = {t.name: numpy_helper.to_array(t) for t in sparse_model.graph.initializer}
    node = sparse_model.graph.node[0]
    if form is not None:
        shape = next(tuple(a.ints) for a in node.attribute if a.name == "shape")
        packed = Packed(tuple(tensors.pop(name) for name in form.inputs), shape, TensorProto.FLOAT)
        tensors["W"] = form.decode(packed, "W")
    text = text.replace("CONV", "strides = [2, 1], pads = [1, 0, 1, 2], group = 2")
    tensors |= {name: np.array(value, np.float32) for name, value in SCALARS.items() if name in text}
    tensors |= {"high": np.array(6, np.float32)} if "high" in text else {}
    inputs = ", ".join(
        f"float{[d.dim_value for d in i.type.tensor_type.shape.dim]} {i.name}"
        for i in sparse_model.graph.input
    )
    header = '<ir_version: 8, opset_import: ["": 17]>'
    proto = onnx.parser.parse_model(f"{header} g ({inputs}) => (float y) {{ {text} }}")
    proto.graph.output[0].CopyFrom(sparse_model.graph.output[0])
    proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in tensors.items())
    return proto


def optimised(proto: onnx.ModelProto, path: Path) -> Counter[str]:
    runtime.session(proto, threads=1, kernels=False, optimized_path=path)
    return Counter(f"{node.domain}.{node.op_type}" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("name", DENSE)
def test_body_is_folded_to_the_dense_ops(name: str, opset: int, tmp_path: Path) -> None:
    op = parse(name)
    assert op is not None
    proto, _, _ = case(op, opset)
    dense = exported(proto, DENSE[name], op)
    onnx.checker.check_model(dense)
    assert optimised(proto, tmp_path / "a.onnx") == optimised(dense, tmp_path / "b.onnx")


def test_tail_without_a_bias() -> None:
    assert [n.op_type for n in tail(SparseOp("MatMul", "Gap4"), 17, bias=False)] == ["MatMul"]
    (conv,) = tail(SparseOp("Conv"), 17, bias=False)
    assert list(conv.input) == ["X", "W"]
