"""The ops of domain ``onnxprune`` that have a kernel: names, inputs, attributes, bodies in standard ONNX.

Name = ``Sparse`` + prefix of the storage form + ``MatMul`` | ``Gemm`` | ``Conv`` + epilogue, or
``DirectConv`` + epilogue for a convolution whose weight is dense. The epilogue is spelled
[``Add``] [``Relu`` | ``Clip`` | ``Gelu`` | ``GeluTanh`` | ``Silu`` | ``HardSwish``] [``Norm``]::

    SparseGap4MatMulGelu(X, steps, values, B) -> Y              Y = gelu(X W + B)
    SparseBitmapMatMulAddNorm(X, mask, values, B, R, gamma, beta) -> Y
                                                                Y = LayerNormalization(X W + B + R)
    SparseGap8ConvAddRelu(X, steps, values, B, R) -> Y          Y = relu(Conv(X, W, B) + R)
    DirectConvClip(X, W, B) -> Y                                Y = clip(Conv(X, W, B), low, high)

``X`` is float32; ``B`` has shape ``(N,)`` and is always there; ``R`` has the shape of ``Y``; ``gamma`` and
``beta`` have shape ``(N,)`` and go with the last axis. ``Norm`` exists for MatMul without an activation
only, ``Add`` and ``Norm`` not for Gemm. The weight is the second operand, stored as ONNX wants it:
MatMul ``(K, N)``, Gemm ``(K, N)`` or with ``transB`` ``(N, K)``, Conv ``(N, C / group, ...)``.

Attributes: those of the form (see :mod:`onnxprune.storage.functions`); ``transB`` of Gemm; all of Conv,
always written out, ``auto_pad`` always ``NOTSET``; ``low`` and ``high`` (float) of ``Clip``; ``epsilon``
(float) of ``Norm``; these three once more as tensors (``low_tensor``, ...) in models of opset 11 and older,
whose ``Constant`` has no ``value_float``. ONNX Runtime with the library of ``ort_ops/`` runs its kernel;
without it the body, which it folds and fuses to what it runs for the dense model: so the body spells each
epilogue the way that the fusions of ONNX Runtime know.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN, VERSION, Form
from onnxprune.storage.functions import CONV_ATTRIBUTES, form_attributes, shape_constant

ACTIVATIONS = ("Relu", "Clip", "GeluTanh", "Gelu", "Silu", "HardSwish")
MIN_OPSET = 7  # broadcasting as it is now
_ERF_OPSET = 9
_CLIP_INPUTS_OPSET = 11  # before, Clip has its limits as attributes
_FLOAT_CONSTANT_OPSET = 12  # Constant.value_float, with which a body reads float attributes
_NORM_OPSET, _GELU_OPSET = 17, 20
_TENSOR = "_tensor"  # ending of a float attribute that is a tensor, for older opsets
_NAME = re.compile(
    r"(?:Sparse(?P<prefix>[A-Z][a-z]+[0-9]*)(?P<consumer>MatMul|Gemm|Conv)|DirectConv)"
    rf"(?P<add>Add)?(?P<activation>{'|'.join(ACTIVATIONS)})?(?P<norm>Norm)?"
)


@dataclass(frozen=True)
class Epilogue:
    """What happens to the output of a product: + bias [+ residual] [activation] [LayerNormalization]."""

    residual: bool = False
    activation: str = ""
    norm: bool = False

    @property
    def suffix(self) -> str:
        """Its part of the op's name."""
        return f"{'Add' * self.residual}{self.activation}{'Norm' * self.norm}"


@dataclass(frozen=True)
class SparseOp:
    """An op with a kernel.

    Attributes:
        consumer: ``MatMul``, ``Gemm`` or ``Conv``.
        prefix: of the storage form, or empty when the weight is dense (``DirectConv``).
        epilogue: what follows the product.
    """

    consumer: str
    prefix: str = ""
    epilogue: Epilogue = field(default_factory=Epilogue)

    def __post_init__(self) -> None:
        end = self.epilogue
        assert end.activation in ("", *ACTIVATIONS)
        assert self.prefix or self.consumer == "Conv"
        assert not end.norm or (self.consumer == "MatMul" and not end.activation)
        assert not end.residual or self.consumer != "Gemm"

    @property
    def name(self) -> str:
        """Its ``op_type``."""
        start = f"Sparse{self.prefix}{self.consumer}" if self.prefix else "DirectConv"
        return start + self.epilogue.suffix

    def tail_inputs(self) -> list[str]:
        """Names of the inputs behind the weight: bias, residual, gamma and beta."""
        end = self.epilogue
        return ["B", *["R"] * end.residual, *["gamma", "beta"] * end.norm]

    def product_attributes(self) -> dict[str, AttributeProto.AttributeType]:
        """The attributes of MatMul, Gemm or Conv that it has."""
        if self.consumer == "Gemm":
            return {"transB": AttributeProto.INT}
        return dict(CONV_ATTRIBUTES) if self.consumer == "Conv" else {}

    def numbers(self) -> list[str]:
        """Names of the float attributes of its epilogue."""
        return ["low", "high"] * (self.epilogue.activation == "Clip") + ["epsilon"] * self.epilogue.norm

    def attributes(self, opset: int) -> list[str]:
        """Names of its attributes besides those of the storage form, in models of this opset."""
        names = [*self.product_attributes(), *self.numbers()]
        return names + [f"{name}{_TENSOR}" for name in self.numbers() if opset < _FLOAT_CONSTANT_OPSET]

    def refusal(self, opset: int) -> str:
        """Return why a model of this opset cannot hold the op, or an empty string."""
        form = next((form.min_opset for form in FORMS.values() if form.prefix == self.prefix), MIN_OPSET)
        wanted = max(form, _ERF_OPSET if self.epilogue.activation == "Gelu" else MIN_OPSET)
        return f"opset {opset}, wanted {wanted}" if opset < wanted else ""


def parse(op_type: str, prefixes: Mapping[str, Form] | None = None) -> SparseOp | None:
    """Return the op with this name, None when it is none.

    Args:
        op_type: of a node of our domain.
        prefixes: the storage forms by their prefix; None accepts any.
    """
    match = _NAME.fullmatch(op_type)
    if not match or (match["prefix"] and prefixes is not None and match["prefix"] not in prefixes):
        return None
    consumer = match["consumer"] or "Conv"
    end = Epilogue(bool(match["add"]), match["activation"] or "", bool(match["norm"]))
    known = (not end.norm or (consumer == "MatMul" and not end.activation)) and (
        not end.residual or consumer != "Gemm"
    )
    return SparseOp(consumer, match["prefix"] or "", end) if known else None


def make_sparse_function(op: SparseOp, form: Form | None, opset: int, *, cast: bool) -> onnx.FunctionProto:
    """Return the function of ``op`` for models of default opset ``opset``.

    Args:
        op: what to define.
        form: storage form of its weight, None for a dense one.
        opset: version of the default domain.
        cast: whether the values of some node have another type than its weight.
    """
    nodes, inputs, attributes = [], ["W"], []
    if form is not None:
        nodes = [*shape_constant(opset), *form.body("", opset, cast, "W")]
        inputs, attributes = list(form.inputs), form_attributes(form, opset)
    nodes += tail(op, opset)
    function: onnx.FunctionProto = helper.make_function(
        DOMAIN,
        op.name,
        ["X", *inputs, *op.tail_inputs()],
        ["Y"],
        nodes,
        [helper.make_opsetid("", opset)],
        [*attributes, *op.attributes(opset)],
    )
    stored = f"stored as {form.name}" if form else "that is dense"
    function.doc_string = f"{op.consumer} with a weight {stored}, version {VERSION}. Written by onnxprune."
    return function


def number_attributes(numbers: Mapping[str, float], opset: int) -> list[AttributeProto]:
    """Return the float attributes of an epilogue for a node in a model of this opset.

    Args:
        numbers: values of :meth:`SparseOp.numbers`.
        opset: version of the default domain.
    """
    found = [helper.make_attribute(name, value) for name, value in numbers.items()]
    if opset < _FLOAT_CONSTANT_OPSET:
        tensors = {
            name: numpy_helper.from_array(np.array(value, np.float32)) for name, value in numbers.items()
        }
        found += [helper.make_attribute(f"{name}{_TENSOR}", tensor) for name, tensor in tensors.items()]
    return found


def tail(op: SparseOp, opset: int, *, bias: bool = True) -> list[onnx.NodeProto]:
    """Return standard nodes from ``X``, the dense ``W`` and the inputs behind it to ``Y``.

    Attributes refer to those of the function. ``bias=False`` leaves ``B`` out.
    """
    writer = _Tail(opset)
    product = writer.product(op, bias)
    end = op.epilogue
    if end.residual:
        product = writer.add("Add", product, "R")
    if end.activation:
        product = getattr(writer, end.activation.lower())(product)
    if end.norm:
        writer.norm(product)
    writer.nodes[-1].output[0] = "Y"
    return writer.nodes


def activation_tail(activation: str, x: str, y: str, opset: int) -> list[onnx.NodeProto]:
    """Return standard nodes for one of ``ACTIVATIONS`` from the float32 value ``x`` to ``y``."""
    writer = _Tail(opset)
    getattr(writer, activation.lower())(x)
    writer.nodes[-1].output[0] = y
    return writer.nodes


class _Tail:
    """Appends standard nodes; every method returns the name of its result."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def constant(self, value: float) -> str:
        return self.add("Constant", value=numpy_helper.from_array(np.array(value, np.float32)))

    def given(self, attribute: str) -> str:
        """A float attribute of the function as a value."""
        output = self.add("Constant")
        if self.opset < _FLOAT_CONSTANT_OPSET:
            self.refer("value", f"{attribute}{_TENSOR}", AttributeProto.TENSOR)
        else:
            self.refer("value_float", attribute, AttributeProto.FLOAT)
        return output

    def refer(self, name: str, given: str, kind: AttributeProto.AttributeType) -> None:
        """Let attribute ``name`` of the last node be the attribute ``given`` of the function."""
        self.nodes[-1].attribute.add(name=name, ref_attr_name=given, type=kind)

    def product(self, op: SparseOp, bias: bool) -> str:
        wide = ["B"] * (bias and op.consumer != "MatMul")
        output = self.add(op.consumer, "X", "W", *wide)
        for name, kind in op.product_attributes().items():
            self.refer(name, name, kind)
        return self.add("Add", output, "B") if bias and op.consumer == "MatMul" else output

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def clip(self, x: str) -> str:
        if self.opset >= _CLIP_INPUTS_OPSET:
            return self.add("Clip", x, self.given("low"), self.given("high"))
        output = self.add("Clip", x)
        self.refer("min", "low", AttributeProto.FLOAT)
        self.refer("max", "high", AttributeProto.FLOAT)
        return output

    def gelu(self, x: str) -> str:
        if self.opset >= _GELU_OPSET:
            return self.add("Gelu", x)
        error = self.add("Erf", self.add("Div", x, self.constant(math.sqrt(2))))
        gate = self.add("Add", error, self.constant(1))
        return self.add("Mul", self.add("Mul", x, gate), self.constant(0.5))

    def gelutanh(self, x: str) -> str:
        if self.opset >= _GELU_OPSET:
            return self.add("Gelu", x, approximate="tanh")
        cube = self.add("Mul", self.add("Pow", x, self.constant(3)), self.constant(0.044715))
        inner = self.add("Mul", self.add("Add", x, cube), self.constant(math.sqrt(2 / math.pi)))
        gate = self.add("Add", self.add("Tanh", inner), self.constant(1))
        return self.add("Mul", self.add("Mul", x, self.constant(0.5)), gate)

    def silu(self, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))

    def hardswish(self, x: str) -> str:
        return self.add("Mul", x, self.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))

    def norm(self, x: str) -> str:
        if self.opset >= _NORM_OPSET:
            output = self.add("LayerNormalization", x, "gamma", "beta", axis=-1)
            self.refer("epsilon", "epsilon", AttributeProto.FLOAT)
            return output
        centred = self.add("Sub", x, self.add("ReduceMean", x, axes=[-1], keepdims=1))
        square = self.add("Pow", centred, self.constant(2))
        variance = self.add("ReduceMean", square, axes=[-1], keepdims=1)
        deviation = self.add("Sqrt", self.add("Add", variance, self.given("epsilon")))
        scaled = self.add("Mul", self.add("Div", centred, deviation), "gamma")
        return self.add("Add", scaled, "beta")
