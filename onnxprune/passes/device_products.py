"""Find the matrix products and 1x1 convolutions that a CUDA kernel can take over, or say why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.attributes import attribute
from onnxprune.model import Model, only_reader
from onnxprune.passes.regions import activation
from onnxprune.storage.device.functions import refusal
from onnxprune.storage.edit import is_overridable
from onnxprune.storage.form import Array, round_to_fp16

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
