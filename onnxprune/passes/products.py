"""Find the matrix products and convolutions that an op with a kernel can take over, or say why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, TensorProto, helper

from onnxprune.attributes import attribute, ints
from onnxprune.layers.recurrent import GATES
from onnxprune.model import Model
from onnxprune.passes.padding import Pads, automatic_pads
from onnxprune.passes.shapes import Shapes
from onnxprune.storage.device.functions import device_op
from onnxprune.storage.domain import form_of, packed_inputs, sparse_op
from onnxprune.storage.form import DOMAIN
from onnxprune.storage.functions import Consumer, consumer_of, consumer_with, form_attributes, operands
from onnxprune.storage.sparse_functions import SparseOp


@dataclass(frozen=True)
class Product:
    """A node that an op with a kernel can replace.

    Attributes:
        position: of the node.
        op: without an epilogue.
        x: the activation.
        weight: the name that reports use.
        tensors: names of the constants that hold the weight.
        bias: a value ``(N,)`` or a constant that broadcasts to it, empty when the node has none.
        features: N, the number of outputs.
        axis: where they are in the output: -1, or 1 for a convolution.
        shape: of the dense weight.
        attributes: of the new node.
        absorbed: positions of nodes before it that go with it (a ``Pad``).
    """

    position: int
    op: SparseOp
    x: str
    weight: str
    tensors: tuple[str, ...]
    bias: str
    features: int
    axis: int
    shape: tuple[int, ...]
    attributes: tuple[AttributeProto, ...] = ()
    absorbed: tuple[int, ...] = ()

    @property
    def sparse(self) -> bool:
        """Whether its weight is packed; else it is a convolution with a dense one."""
        return bool(self.op.prefix)


class _RefusalError(Exception):
    """Raised inside this module when a node cannot be replaced."""


@dataclass
class Found:
    """Products in graph order, and for each other packed weight (and convolution) why it is none."""

    products: list[Product] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)


def find_products(model: Model, shapes: Shapes) -> Found:
    """Return what can be replaced in ``model``, whose weights are packed.

    A weight that several nodes read is made by one ``Decode`` node; each of them is a product of its own.
    """
    found, pads, decoders = Found(), Pads(model), _decoders(model)
    for position, node in enumerate(model.graph.node):
        weight = _weight(model, node, decoders)
        if not weight:
            continue
        source = model.graph.node[decoders[weight]] if weight in decoders else node
        try:
            found.products.append(_product(model, shapes, pads, position, weight, source))
        except _RefusalError as refusal:
            found.refusals[weight] = str(refusal)
    switchable = {product.weight for product in found.products}
    for weight in decoders.keys() - found.refusals.keys():
        found.refusals[weight] = _why_decoded(model, weight)
    found.refusals = {name: why for name, why in found.refusals.items() if name not in switchable}
    return found


def shared_weights(model: Model) -> set[str]:
    """Return the weights made by a ``Decode`` node that some product reads."""
    decoders = _decoders(model)
    weights = (_weight(model, node, decoders) for node in model.graph.node)
    return {weight for weight in weights if weight in decoders}


def _decoders(model: Model) -> dict[str, int]:
    """Return weight -> position of the node that only decodes it."""
    found = {}
    for position, node in enumerate(model.graph.node):
        if node.domain == DOMAIN and sparse_op(node) is None and device_op(node) is None:
            form, suffix = form_of(node)
            if form is not None and suffix in form.decoders:
                found[str(node.output[0])] = position
    return found


def _why_decoded(model: Model, weight: str) -> str:
    readers = {model.graph.node[use.index].op_type for use in model.index.uses.get(weight, [])}
    if readers == {"Gather"}:
        return "it is a table, of which only rows are read"
    if readers and readers <= GATES.keys():
        return "recurrent nodes have no kernel"
    return "more than one node reads the weight, or not as a product"


def _weight(model: Model, node: onnx.NodeProto, decoders: Mapping[str, int]) -> str:
    """Name of the weight of a packed node without a kernel, of a convolution, of a product with a decoder."""
    if node.domain == DOMAIN and sparse_op(node) is None and device_op(node) is None:
        return "" if node.output[0] in decoders else packed_inputs(node)[-1]
    if node.domain not in ("", "ai.onnx") or len(node.input) < 2:
        return ""
    if node.input[1] in decoders and list(node.input).count(node.input[1]) == 1:
        return str(node.input[1]) if consumer_of(node, 1) is not None else ""
    return str(node.input[1]) if node.op_type == "Conv" and node.input[1] in model.index.tensors else ""


def _product(
    model: Model, shapes: Shapes, pads: Pads, position: int, weight: str, source: onnx.NodeProto
) -> Product:
    """Return the product at ``position``; ``source`` is the node that has its packed weight."""
    node = model.graph.node[position]
    if source.domain != DOMAIN:
        tensor = model.index.tensors[weight]
        if tensor.data_type != TensorProto.FLOAT:
            raise _RefusalError("its weight is not float32")
        bias = (operands(node)[2:] or [""])[0]
        return _conv(model, pads, position, SparseOp("Conv"), weight, (weight,), tuple(tensor.dims), bias)
    form, suffix = form_of(source)
    consumer = consumer_of(node, 1) if source is not node else consumer_with(suffix)
    assert form is not None and consumer is not None
    shape = tuple(int(i) for i in next(a.ints for a in source.attribute if a.name == "shape"))
    if next(a.i for a in source.attribute if a.name == "dtype") != TensorProto.FLOAT:
        raise _RefusalError("its weight is not float32")
    if consumer.slot != 1:
        raise _RefusalError("its weight is the left operand")
    if not form.fits_fused(shape):
        raise _RefusalError(f"its {math.prod(shape)} elements fill no whole number of bytes")
    tensors = tuple(packed_inputs(source))
    bias = (_others(node, consumer, tensors)[1:] or [""])[0]
    op = SparseOp(consumer.op, form.prefix)
    names = form_attributes(form, model.opset)
    stored = tuple(a for a in source.attribute if a.name in names)
    if consumer.op == "Conv":
        return _conv(model, pads, position, op, weight, tensors, shape, bias, stored)
    if len(shape) != 2:
        raise _RefusalError("its weight is a batch of matrices")
    if consumer.op == "Gemm":
        return _gemm(model, position, op, weight, tensors, shape, bias, stored)
    rank = shapes.rank(node.input[0])
    if rank is None or rank < 2:
        raise _RefusalError("its input is a vector" if rank else "the shape of its input is unknown")
    return Product(position, op, node.input[0], weight, tensors, "", shape[1], -1, shape, stored)


def _others(node: onnx.NodeProto, consumer: Consumer, tensors: tuple[str, ...]) -> list[str]:
    """Return the inputs of a product without its weight."""
    packed = len(tensors) if node.domain == DOMAIN else 1
    return [*operands(node)[: consumer.slot], *operands(node)[consumer.slot + packed :]]


def _gemm(
    model: Model,
    position: int,
    op: SparseOp,
    weight: str,
    tensors: tuple[str, ...],
    shape: tuple[int, ...],
    bias: str,
    stored: tuple[AttributeProto, ...],
) -> Product:
    node = model.graph.node[position]
    trans_b = int(bool(attribute(node, "transB", 0)))
    features = shape[0] if trans_b else shape[1]
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0:
        raise _RefusalError("its Gemm has transA or alpha")
    if bias:
        constant = model.index.tensors.get(bias)
        if attribute(node, "beta", 1.0) != 1.0:
            raise _RefusalError("its Gemm has beta")
        if constant is None or math.prod(constant.dims) not in (1, features) or not _last(constant, features):
            raise _RefusalError("the C of its Gemm is not one number for each output")
    attributes = (*stored, helper.make_attribute("transB", trans_b))
    return Product(position, op, node.input[0], weight, tensors, bias, features, -1, shape, attributes)


def _last(tensor: TensorProto, features: int) -> bool:
    """Whether a constant with ``features`` or one elements has them on its last axis."""
    return math.prod(tensor.dims) == 1 or int(tensor.dims[-1]) == features


def _conv(
    model: Model,
    pads: Pads,
    position: int,
    op: SparseOp,
    weight: str,
    tensors: tuple[str, ...],
    shape: tuple[int, ...],
    bias: str,
    stored: tuple[AttributeProto, ...] = (),
) -> Product:
    node = model.graph.node[position]
    space = len(shape) - 2
    if space not in (1, 2):
        raise _RefusalError(f"its convolution has {space} spatial axes")
    if bias and bias not in model.index.tensors:
        raise _RefusalError("its bias is computed")
    x = node.input[0]
    values = {
        "kernel_shape": list(shape[2:]),
        "strides": list(ints(node, "strides", (1,) * space)),
        "dilations": list(ints(node, "dilations", (1,) * space)),
        "pads": list(ints(node, "pads", (0,) * 2 * space)),
    }
    absorbed: tuple[int, ...] = ()
    automatic = str(attribute(node, "auto_pad", "NOTSET"))
    if automatic != "NOTSET":
        found = automatic_pads(automatic, values["kernel_shape"], values["strides"], values["dilations"])
        if found is None:
            raise _RefusalError(f"auto_pad {automatic} with a stride depends on the input's size")
        values["pads"] = found
    else:
        before = pads.before(x, space)
        if before is not None:
            absorbed, x = (before[0],), model.graph.node[before[0]].input[0]
            values["pads"] = [p + q for p, q in zip(values["pads"], before[1], strict=True)]
    group = int(str(attribute(node, "group", 1)))
    attributes = [helper.make_attribute(name, value) for name, value in values.items()]
    attributes += [helper.make_attribute("group", group), helper.make_attribute("auto_pad", "NOTSET")]
    return Product(
        position, op, x, weight, tensors, bias, shape[0], 1, shape, (*stored, *attributes), absorbed
    )
