"""The ops of domain ``onnxprune``, version 1, and their bodies in standard ONNX.

For a form with prefix ``Bitmap`` and inputs ``mask, values`` (others likewise: ``Gap4``, ``steps, values``)::

    BitmapMatMul(X, mask, values) -> Y              Y = MatMul(X, W)
    BitmapLeftMatMul(X, mask, values) -> Y          Y = MatMul(W, X)
    BitmapGemm(X, mask, values) -> Y                Y = Gemm(X, W)
    BitmapGemmBias(X, mask, values, C) -> Y         Y = Gemm(X, W, C)
    BitmapConv(X, mask, values) -> Y                Y = Conv(X, W)
    BitmapConvBias(X, mask, values, B) -> Y         Y = Conv(X, W, B)
    BitmapDecode(mask, values) -> W                 for any other use, and for weights used twice

With an optional bias as one op, ONNX Runtime would inline ``Conv(X, W, "")``, whose empty name keeps
it from fusing BatchNormalization. Each has the attributes ``shape`` (ints) and ``dtype`` (int) of the
dense weight, and those of the form (some only in models of old opsets), besides those of the standard op,
which keep their defaults when a node does not set them. A runtime that has a kernel for the op uses it and
never builds W; ONNX Runtime without one inlines the function and folds the decoding. The nodes of the body
are of the model's own opset, for they end up in its graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.storage.body import given, given_tensor, tensor
from onnxprune.storage.form import DOMAIN, VERSION, Form, Packed
from onnxprune.storage.prefix_sum import CUMSUM_OPSET

_DIRECT_SHAPE_OPSET = 12  # Constant.value_ints


@dataclass(frozen=True)
class Consumer:
    """A standard op that has a fused form.

    Attributes:
        op: its name in the default domain.
        slot: position of the weight among its inputs.
        suffix: its name behind the form's prefix.
        others: names of its other inputs, in order; the packed tensors come after the first.
        attributes: what the function passes on, with its type.
    """

    op: str
    slot: int
    suffix: str
    others: tuple[str, ...]
    attributes: Mapping[str, AttributeProto.AttributeType]


_A = AttributeProto
_GEMM = {"alpha": _A.FLOAT, "beta": _A.FLOAT, "transA": _A.INT, "transB": _A.INT}
CONV_ATTRIBUTES: Mapping[str, AttributeProto.AttributeType] = {
    "auto_pad": _A.STRING,
    "dilations": _A.INTS,
    "group": _A.INT,
    "kernel_shape": _A.INTS,
    "pads": _A.INTS,
    "strides": _A.INTS,
}
CONSUMERS = (
    Consumer("MatMul", 1, "MatMul", ("X",), {}),
    Consumer("MatMul", 0, "LeftMatMul", ("X",), {}),
    Consumer("Gemm", 1, "Gemm", ("X",), _GEMM),
    Consumer("Gemm", 1, "GemmBias", ("X", "C"), _GEMM),
    Consumer("Conv", 1, "Conv", ("X",), CONV_ATTRIBUTES),
    Consumer("Conv", 1, "ConvBias", ("X", "B"), CONV_ATTRIBUTES),
)


def consumer_of(node: onnx.NodeProto, slot: int) -> Consumer | None:
    """Return the fused form for a weight at input ``slot`` of ``node``, if there is one."""
    if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    given = len(operands(node))
    for consumer in CONSUMERS:
        if (node.op_type, slot, given) == (consumer.op, consumer.slot, len(consumer.others) + 1):
            known = {attribute.name for attribute in node.attribute} <= consumer.attributes.keys()
            return consumer if known else None
    return None


def operands(node: onnx.NodeProto) -> list[str]:
    """Return the inputs of ``node`` without optional ones that are left out at the end."""
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names


def parse_op(op_type: str, forms: dict[str, Form]) -> tuple[Form, str]:
    """Split an op name into its form and its suffix.

    Raises:
        ModelError: when it is none of ours.
    """
    for form in forms.values():
        suffix = op_type.removeprefix(form.prefix)
        if suffix != op_type and suffix in (*(c.suffix for c in CONSUMERS), *form.decoders):
            return form, suffix
    raise ModelError(
        f"the model has an op {DOMAIN}.{op_type}, which this version does not know",
        "read it with the version of onnxprune that wrote it, or a newer one",
    )


def consumer_with(suffix: str) -> Consumer | None:
    """Return the consumer of a fused op by its suffix; None for the ops that only decode."""
    return next((c for c in CONSUMERS if c.suffix == suffix), None)


def make_function(form: Form, suffix: str, opset: int, *, cast: bool) -> onnx.FunctionProto:
    """Return the function ``form.prefix + suffix`` for models of default opset ``opset``.

    Args:
        form: the storage form.
        suffix: of a :class:`Consumer`, or of an op that only decodes.
        opset: version of the default domain, at least ``form.min_opset``.
        cast: whether the values of some node have another type than its weight.
    """
    consumer = consumer_with(suffix)
    nodes = [*shape_constant(opset), *form.body(suffix, opset, cast, "W")]
    inputs, output, attributes = list(form.inputs), "W", form_attributes(form, opset)
    if consumer is not None:
        final_inputs = list(consumer.others)
        final_inputs.insert(consumer.slot, "W")
        final = helper.make_node(consumer.op, final_inputs, ["Y"])
        for name, kind in consumer.attributes.items():
            final.attribute.add(name=name, ref_attr_name=name, type=kind)
        nodes.append(final)
        inputs = [consumer.others[0], *form.inputs, *consumer.others[1:]]
        output = "Y"
        attributes += consumer.attributes
    what = f"{consumer.op} with a weight" if consumer else "A weight"
    function: onnx.FunctionProto = helper.make_function(
        DOMAIN, form.prefix + suffix, inputs, [output], nodes, [helper.make_opsetid("", opset)], attributes
    )
    function.doc_string = f"{what} stored as {form.name}, version {VERSION}. Written by onnxprune."
    return function


def set_attributes(node: onnx.NodeProto, form: Form, packed: Packed, opset: int) -> None:
    """Give ``node`` the attributes that say which dense weight its packed inputs stand for."""
    shape = list(packed.shape)
    for name, ints in {"shape": shape, **form.extra(packed)}.items():
        node.attribute.append(helper.make_attribute(name, ints, attr_type=AttributeProto.INTS))
    node.attribute.append(helper.make_attribute("dtype", packed.data_type))
    if opset < _DIRECT_SHAPE_OPSET:
        dims = tensor(np.array(shape, np.int64), opset)
        node.attribute.append(helper.make_attribute("shape_tensor", dims))
    if opset < CUMSUM_OPSET:
        for name, value in form.extra_before_11(packed, opset).items():
            node.attribute.append(helper.make_attribute(name, value))


def stored_bytes(form: Form, packed: Packed, opset: int) -> int:
    """Return what a weight takes in the file: its tensors, and attributes that grow with it."""
    extra = form.extra_before_11(packed, opset) if opset < CUMSUM_OPSET else {}
    tensors = [value for value in extra.values() if isinstance(value, onnx.TensorProto)]
    return packed.nbytes + sum(len(value.raw_data) for value in tensors)


def same_value(a: AttributeProto, b: AttributeProto) -> bool:
    """Whether two attributes hold the same number, ints or tensor, however a tensor is written."""
    if a.type != b.type:
        return False
    if a.type == AttributeProto.TENSOR:
        return np.array_equal(numpy_helper.to_array(a.t), numpy_helper.to_array(b.t))
    return bool(helper.get_attribute_value(a) == helper.get_attribute_value(b))


def form_attributes(form: Form, opset: int) -> list[str]:
    """Return the names of the attributes that tell a function which dense weight its inputs stand for."""
    names = ["shape", "dtype", *form.attributes]
    if opset < _DIRECT_SHAPE_OPSET:
        names.append("shape_tensor")
    return names if opset >= CUMSUM_OPSET else [*names, *form.attributes_before_11]


def shape_constant(opset: int) -> list[onnx.NodeProto]:
    """Return nodes that make the value ``shape``, which the forms' bodies read, from the attribute."""
    if opset < _DIRECT_SHAPE_OPSET:
        return given_tensor("shape_tensor", "shape", np.int64, opset)
    return [given("Constant", [], "shape", value_ints=("shape", AttributeProto.INTS))]
