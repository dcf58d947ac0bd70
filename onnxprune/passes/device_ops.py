"""Put ops with a CUDA kernel in the place of matrix products, where they are chosen for it.

Matches: MatMul whose second operand is a matrix and a constant, Gemm with plain attributes, and Conv with a
kernel of ones, stride 1, one group and no padding, that alone read their weight; with the bias and the
activation behind them, if nothing else reads the values in between and none of them is a graph output.
Weights are float32, float16 or bfloat16. Changes: product, bias and activation become one node of domain
``onnxprune`` with the product's name; the weight's tensor becomes the values of its layout, others come
beside it. Where the model is float32, the weight and the bias are rounded to float16, a Cast goes before the
node (one for all that read the same value) and one behind it. Writes the functions; IR version 8 or newer.
Guarantees: stock ONNX Runtime computes the same from the same weights, decoded at load.
:mod:`onnxprune.passes.unpack` makes standard nodes again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.attributes import attribute
from onnxprune.model import Model, only_reader
from onnxprune.passes.expand import NO_BIAS
from onnxprune.passes.regions import activation
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.device.functions import DeviceOp, attributes, refusal
from onnxprune.storage.device.layout import Layout
from onnxprune.storage.domain import write_functions
from onnxprune.storage.edit import Names, drop_value_info, fill, is_overridable, raise_ir_version
from onnxprune.storage.form import DOMAIN, MIN_IR_VERSION, Array, onnx_type, round_to_fp16

_STANDARD = ("", "ai.onnx")
_OPS = ("MatMul", "Gemm", "Conv")
_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class DeviceProduct:
    """A product that an op for CUDA can replace.

    Attributes:
        weight: name of its weight.
        x: the activation.
        nodes: positions of all nodes that go, ascending.
        output: the value that they make.
        trans: whether the weight is stored (N, K).
        space: spatial axes of a convolution, whose weight is stored (N, K, 1...); 0 for a matrix.
        bias: name of a constant of N elements, empty for none.
        activation: as in the op's name.
        limits: ``low`` and ``high`` of Clip.
    """

    weight: str
    x: str
    nodes: tuple[int, ...]
    output: str
    trans: bool = False
    space: int = 0
    bias: str = ""
    activation: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)


def find_device_products(model: Model) -> tuple[dict[str, DeviceProduct], dict[str, str]]:
    """Return what can be replaced by weight, and for other weights of products and convolutions why not."""
    found: dict[str, DeviceProduct] = {}
    refusals: dict[str, str] = {}
    for position, node in enumerate(model.graph.node):
        if node.domain not in _STANDARD or node.op_type not in _OPS or len(node.input) < 2:
            continue
        name = node.input[1]
        tensor = model.index.tensors.get(name)
        if tensor is None:
            continue
        reason = _refusal(model, node, tensor)
        if reason:
            refusals[name] = reason
        else:
            found[name] = _product(model, position)
    return found, refusals


def _refusal(model: Model, node: onnx.NodeProto, tensor: TensorProto) -> str:
    name = node.input[1]
    if reason := refusal(model.opset):
        return reason
    conv = node.op_type == "Conv"
    if (len(tensor.dims) != 2 and not conv) or tensor.data_type not in _TYPES:
        return "its weight is no matrix of float32, float16 or bfloat16"
    if conv and (reason := _conv_refusal(model, node, tensor)):
        return reason
    if len(model.index.uses[name]) != 1 or name in model.index.outputs or is_overridable(model, name):
        return "more than one node reads the weight, or callers may replace it"
    if node.op_type == "Gemm":
        if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0:
            return "its Gemm has transA or alpha"
        bias = node.input[2] if len(node.input) > 2 else ""
        features = tensor.dims[0 if attribute(node, "transB", 0) else 1]
        if bias and (attribute(node, "beta", 1.0) != 1.0 or not _is_bias(model, bias, features)):
            return "the C of its Gemm is not one number for each output"
    return ""


def _conv_refusal(model: Model, node: onnx.NodeProto, tensor: TensorProto) -> str:
    """Why a convolution is no product of a matrix with the pixels of each image."""
    kernel, group = list(tensor.dims[2:]), attribute(node, "group", 1)
    numbers = {a.name: list(a.ints) for a in node.attribute}
    if any(size != 1 for size in kernel):
        size = "x".join(map(str, kernel))
        return f"its kernel is {size}: only 1x1 is a product; --pattern structured makes others smaller"
    if group != 1:
        return f"it has {group} groups, wanted one"
    if any(stride != 1 for stride in numbers.get("strides", ())) or any(numbers.get("pads", ())):
        return "it has strides or pads, wanted strides of 1 and no pads"
    bias = node.input[2] if len(node.input) > 2 else ""
    return "its bias is computed" if bias and not _is_bias(model, bias, tensor.dims[0]) else ""


def _is_bias(model: Model, name: str, features: int) -> bool:
    tensor = model.index.tensors.get(name)
    if tensor is None or is_overridable(model, name) or tensor.data_type not in _TYPES:
        return False
    dims = list(tensor.dims)
    return bool(dims) and math.prod(dims) == features == dims[-1] and len(dims) <= 2


def _product(model: Model, position: int) -> DeviceProduct:
    node = model.graph.node[position]
    conv = node.op_type == "Conv"
    trans = conv or (node.op_type == "Gemm" and bool(attribute(node, "transB", 0)))
    dims = model.index.tensors[node.input[1]].dims
    nodes, output = [position], node.output[0]
    bias = node.input[2] if len(node.input) > 2 else ""
    reader = only_reader(model, output)
    if (
        node.op_type == "MatMul"
        and reader is not None
        and reader.op_type == "Add"
        and reader.domain in _STANDARD
    ):
        other = reader.input[1] if reader.input[0] == output else reader.input[0]
        tensor = model.index.tensors.get(other)
        # With more axes than one, a bias could give the output another axis
        if tensor is not None and len(tensor.dims) == 1 and _is_bias(model, other, dims[1]):
            nodes.append(model.index.uses[output][0].index)
            bias, output = other, reader.output[0]
    kind, limits = "", dict[str, float]()
    if model.index.tensors[node.input[1]].data_type == TensorProto.FLOAT:
        behind = activation(model, output)
        if behind is not None:
            region, known = behind
            nodes += region.nodes
            kind, output = known.name, region.output
            limits = {"low": known.low, "high": known.high} if kind == "Clip" else {}
    elif single := _single_activation(model, output):
        kind, position = single
        nodes.append(position)
        output = model.graph.node[position].output[0]
    space = len(dims) - 2 if conv else 0
    return DeviceProduct(
        node.input[1], node.input[0], tuple(sorted(nodes)), output, trans, space, bias, kind, limits
    )


def _single_activation(model: Model, value: str) -> tuple[str, int] | None:
    """Return the activation that one node computes of ``value``, which only it reads, and its position.

    Of 16-bit models only this is recognised: probing a region of nodes needs float32.
    """
    node = only_reader(model, value)
    if node is None or node.domain not in _STANDARD:
        return None
    name = node.op_type
    if name == "Gelu" and attribute(node, "approximate", "none") == "tanh":
        name = "GeluTanh"
    known = name in ("Relu", "Gelu", "GeluTanh", "HardSwish")
    return (name, model.index.uses[value][0].index) if known else None


def device_matrix(model: Model, product: DeviceProduct) -> Array | None:
    """Return the weight as ``W (N, K)`` in 16 bits, None when float16 cannot hold it or its bias."""
    stored = model.array(product.weight)
    stored = stored.reshape(stored.shape[:2])
    rounded = round_to_fp16(stored) if stored.dtype == np.float32 else stored
    bias = model.array(product.bias) if product.bias else np.zeros(1, np.float32)
    if rounded.dtype == np.float32 or (bias.dtype == np.float32 and round_to_fp16(bias).dtype == np.float32):
        return None
    return np.ascontiguousarray(rounded if product.trans else rounded.T)


def rewrite_device(
    model: Model, chosen: Mapping[str, Layout], many_rows: Mapping[str, int] | None = None
) -> None:
    """Replace the products of the weights ``chosen`` (name -> layout) in place.

    Each must be among :func:`find_device_products`, and its layout must not refuse :func:`device_matrix`;
    that of a convolution has a kernel for it (:data:`onnxprune.storage.device.functions.IMAGES`).
    ``many_rows``: of 2:4 weights, from how many rows of X on cuSPARSELt multiplies, 0 for never; the kernel
    decides for the others.
    """
    if not chosen:
        return
    products, _ = find_device_products(model)
    writer = _Writer(model)
    for weight, layout in chosen.items():
        writer.replace(products[weight], layout, (many_rows or {}).get(weight))
    writer.finish()


class _Writer:
    """State of one call: new nodes are put in place once all are known."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = Names(model)
        self.casts: dict[str, tuple[str, onnx.NodeProto]] = {}  # X -> its value in 16 bits, and the node
        self.gone: dict[int, list[onnx.NodeProto]] = {}  # position -> what comes there
        self.stale: set[str] = set()

    def replace(self, product: DeviceProduct, layout: Layout, many_rows: int | None) -> None:
        """Make the nodes of one product."""
        graph = self.model.graph
        matrix = device_matrix(self.model, product)
        assert matrix is not None and not layout.refusal(matrix)
        wide = self.model.index.tensors[product.weight].data_type == TensorProto.FLOAT
        kind = onnx_type(matrix.dtype)
        old = graph.node[next(i for i in product.nodes if product.weight in graph.node[i].input)]
        bias = self._bias(product, matrix)  # before the weight is gone
        tensors = self._tensors(product.weight, layout, layout.encode(matrix))
        op = DeviceOp(layout.prefix, product.activation, bool(product.space))
        x = self._cast(product.x) if wide else product.x
        y = self.names.fresh(f"{product.output}_fp16") if wide else product.output
        node = helper.make_node(op.name, [x, *tensors, bias], [y], old.name, old.doc_string, DOMAIN)
        node.metadata_props.extend(old.metadata_props)
        node.attribute.extend(
            attributes(layout, len(matrix), matrix.shape[1], kind, product.trans, many_rows, product.space)
        )
        node.attribute.extend(helper.make_attribute(name, value) for name, value in product.limits.items())
        after = (
            [helper.make_node("Cast", [y], [product.output], f"{y}_to_float32", to=TensorProto.FLOAT)]
            if wide
            else []
        )
        for position in product.nodes:
            self.gone[position] = []
            self.stale.update(set(graph.node[position].output) - {product.output})
        self.gone[product.nodes[-1]] = [node, *after]

    def _cast(self, x: str) -> str:
        """Return the name of ``x`` in float16; ``finish`` puts the node behind the one that makes ``x``."""
        if x not in self.casts:
            name = self.names.fresh(f"{x}_fp16")
            self.casts[x] = (
                name,
                helper.make_node("Cast", [x], [name], f"{name}_from_float32", to=TensorProto.FLOAT16),
            )
        return self.casts[x][0]

    def _bias(self, product: DeviceProduct, matrix: Array) -> str:
        values = np.zeros(len(matrix), matrix.dtype)
        name = f"{product.weight}{NO_BIAS}"
        if product.bias:
            values = self.model.array(product.bias).reshape(-1).astype(matrix.dtype)
            name = f"{product.bias}_{matrix.dtype}"
        name = self.names.fresh(name)
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _tensors(self, weight: str, layout: Layout, tensors: tuple[Array, ...]) -> list[str]:
        """Put the tensors of the layout where the weight was; return their names in order."""
        names = []
        for role, array in zip(layout.inputs, tensors, strict=True):
            if role == "values":
                names.append(weight)
                fill(self.model.index.tensors[weight], numpy_helper.from_array(array, weight))
            else:
                names.append(self.names.fresh(f"{weight}_{role}"))
                self.model.graph.initializer.append(numpy_helper.from_array(array, names[-1]))
        self.stale.add(weight)
        return names

    def finish(self) -> None:
        """Put the nodes in place, drop what nobody reads, write the functions."""
        graph = self.model.graph
        read = {name for position in self.gone for name in graph.node[position].input if name}
        for position in sorted(self.gone, reverse=True):
            del graph.node[position]
            for node in reversed(self.gone[position]):
                graph.node.insert(position, node)
        for x, (_, cast) in self.casts.items():
            made = next((i for i, node in enumerate(graph.node) if x in node.output), -1)
            graph.node.insert(made + 1, cast)
        drop_value_info(graph, self.stale)
        self.model.reindex()
        drop_unread(self.model, read)
        raise_ir_version(self.model, MIN_IR_VERSION, self.stale)
        self.model.reindex()
        write_functions(self.model)
