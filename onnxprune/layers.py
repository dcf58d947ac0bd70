"""Find the prunable weights of a model and view each one as a matrix.

A *layer* is one weight (an initializer or a ``Constant``) together with every node that uses it.
Solvers see it as ``W (groups, out_features, in_features)``; what cannot be seen like this is
returned as a :class:`Skip` with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.model import Model, label

Kind = Literal["conv", "conv_transpose", "gemm", "matmul", "embedding"]
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_PAIRS = {"Add", "Sub", "Mul", "Div"}
_KEEPS_FEATURES = _PAIRS | {
    *("BatchNormalization", "Cast", "Flatten", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax"),
    *("Squeeze", "Tanh", "Transpose", "Unsqueeze"),
}
_QUANTIZED = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}


@dataclass(frozen=True)
class MatrixView:
    """How a stored tensor is seen as ``W (groups, out_features, in_features)``.

    The stored tensor is reshaped to ``split``, its axes are permuted by ``perm`` and it is reshaped
    to ``matrix``; :meth:`to_stored` does the reverse.
    """

    stored: tuple[int, ...]
    split: tuple[int, ...]
    perm: tuple[int, ...]
    matrix: tuple[int, int, int]

    def to_matrix(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return ``array`` (stored shape) as (groups, out_features, in_features)."""
        return array.reshape(self.split).transpose(self.perm).reshape(self.matrix)

    def to_stored(self, matrix: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return ``matrix`` (groups, out_features, in_features) in the stored shape."""
        permuted = tuple(self.split[axis] for axis in self.perm)
        inverse = tuple(int(axis) for axis in np.argsort(self.perm))
        return np.ascontiguousarray(matrix.reshape(permuted).transpose(inverse).reshape(self.stored))


@dataclass(frozen=True)
class Window:
    """The sliding window of a convolution; one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # begin..., end... as in ONNX
    auto_pad: str


@dataclass(frozen=True)
class Bias:
    """A constant that shifts the layer's output: ``output = W x + sign * scale * value``.

    ``sign`` is -1 for the running mean of a BatchNormalization that follows the layer.
    """

    name: str
    sign: int
    scale: float


@dataclass(frozen=True)
class Site:
    """One node that uses the weight.

    Attributes:
        node: position in graph order.
        input: the activation that the weight multiplies (indices for an embedding).
        output: what the node produces.
        residual: the other operand when the output (after its bias) goes into an Add, else "".
    """

    node: int
    input: str
    output: str
    residual: str = ""


@dataclass(frozen=True)
class Layer:
    """One prunable weight; ``name`` is the key used everywhere."""

    name: str
    kind: Kind
    view: MatrixView
    dtype: np.dtype[np.generic]
    sites: tuple[Site, ...]
    nodes: tuple[str, ...]
    window: Window | None = None
    bias: Bias | None = None
    transposed_input: bool = False  # the activation's features lie on its last but one axis
    alpha: float = 1.0  # output = alpha * W x

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.view.stored))

    @property
    def groups(self) -> int:
        """Independent matrices: groups of a convolution, or the batch of a batched MatMul."""
        return self.view.matrix[0]

    @property
    def depthwise(self) -> bool:
        """True for a convolution with one input channel per group."""
        return (
            self.window is not None
            and self.groups > 1
            and self.view.matrix[2] == int(np.prod(self.window.kernel))
        )


@dataclass(frozen=True)
class Skip:
    """A weight that is left alone, and why."""

    name: str
    node: str
    size: int
    reason: str


class _RefusalError(Exception):
    """Raised inside this module when a use of a weight cannot be seen as a matrix product."""


def find_layers(
    model: Model, *, include: Sequence[str] = (), exclude: Sequence[str] = (), min_size: int = 256
) -> tuple[tuple[Layer, ...], tuple[Skip, ...]]:
    """Return the prunable layers in graph order and everything that is left alone with its reason.

    Args:
        model: the model.
        include: globs over weight and node names; empty means all.
        exclude: globs over weight and node names.
        min_size: smallest number of elements worth pruning.

    Raises:
        ModelError: when a prunable weight holds NaN or infinity.
    """
    layers: list[Layer] = []
    skips: list[Skip] = []
    for name, tensor in model.index.tensors.items():
        uses = model.index.uses.get(name, [])
        size = int(np.prod(tensor.dims)) if tensor.dims else 1
        nodes = tuple(label(model.graph.node[use.index]) for use in uses)
        if not _worth_naming(tensor, size):
            continue
        try:
            _check_selected(name, nodes, include, exclude)
            if size < min_size:
                raise _RefusalError(f"too small: {size} elements, --min-size is {min_size}")
            layer = _build(model, name, tensor)
        except _RefusalError as refusal:
            skips.append(Skip(name, nodes[0] if nodes else "", size, str(refusal)))
            continue
        if not np.isfinite(model.array(name).astype(np.float32)).all():
            raise ModelError(
                f"weight {name!r} of node {nodes[0]!r} holds NaN or infinite values",
                f"--exclude '{name}' leaves it alone",
            )
        layers.append(layer)
    layers.sort(key=lambda layer: (layer.sites[0].node, layer.name))
    return tuple(layers), tuple(skips)


def heads(model: Model, layers: Sequence[Layer]) -> frozenset[str]:
    """Return the weights whose output features are features of a graph output: a classifier's classes."""
    by_node = {site.node: layer.name for layer in layers for site in layer.sites}
    nodes, found = model.graph.node, set()
    for output in model.index.outputs:
        position = model.index.producer.get(output)
        while position is not None and position not in by_node and nodes[position].op_type in _KEEPS_FEATURES:
            moving = [name for name in nodes[position].input if name and name not in model.index.tensors]
            if not moving or (nodes[position].op_type in _PAIRS and len(moving) > 1):
                break
            position = model.index.producer.get(moving[0])
        if position is not None and position in by_node:
            found.add(by_node[position])
    return frozenset(found)


def _worth_naming(tensor: TensorProto, size: int) -> bool:
    """Scalars, vectors (biases, norm scales) and shape arithmetic are not worth a line in the report."""
    matrix_like = sum(dim > 1 for dim in tensor.dims) >= 2
    return matrix_like and size >= 16 and tensor.data_type in _FLOATS | _QUANTIZED


def _check_selected(name: str, nodes: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> None:
    names = (name, *nodes)
    for pattern in exclude:
        if any(fnmatchcase(item, pattern) for item in names):
            raise _RefusalError(f"excluded by --exclude {pattern}")
    if include and not any(fnmatchcase(item, pattern) for item in names for pattern in include):
        raise _RefusalError("not matched by any --include")


def _build(model: Model, name: str, tensor: TensorProto) -> Layer:
    """Build the layer of weight ``name``; every one of its uses must give the same matrix view."""
    if tensor.data_type in _QUANTIZED:
        raise _RefusalError("quantized")
    uses = model.index.uses.get(name, [])
    if not uses:
        raise _RefusalError("no node uses it")
    if name in model.index.outputs:
        raise _RefusalError("is a graph output")
    found = [_from_use(model, name, tuple(tensor.dims), use.index, use.slot) for use in uses]
    first = found[0]
    for other in found[1:]:
        if (other.kind, other.view, other.window, other.transposed_input) != (
            first.kind,
            first.view,
            first.window,
            first.transposed_input,
        ):
            raise _RefusalError(f"shared by {first.nodes[0]} and {other.nodes[0]} in different roles")
    sites = tuple(layer.sites[0] for layer in found)
    nodes = tuple(layer.nodes[0] for layer in found)
    bias = first.bias if len(found) == 1 else None
    return Layer(
        name,
        first.kind,
        first.view,
        first.dtype,
        sites,
        nodes,
        first.window,
        bias,
        first.transposed_input,
        first.alpha,
    )


def _from_use(model: Model, name: str, dims: tuple[int, ...], position: int, slot: int) -> Layer:
    node = model.graph.node[position]
    if slot < 0:
        raise _RefusalError(f"read inside the subgraph of {label(node)}")
    builder = _BUILDERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if builder is None:
        if node.op_type == "Identity":
            raise _RefusalError("read through Identity, which only --target-runtime cpu looks through")
        raise _RefusalError(f"used by {node.op_type}, which is not a prunable operator")
    return builder(model, name, dims, node, position, slot)


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """Return the value of attribute ``name`` of ``node``, or ``default``."""
    for item in node.attribute:
        if item.name == name:
            value = onnx.helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _ints(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = attribute(node, name)
    return tuple(int(item) for item in value) if isinstance(value, Sequence) else default


def _number(node: onnx.NodeProto, name: str, default: float) -> float:
    value = attribute(node, name, default)
    return float(value) if isinstance(value, int | float) else default


def _dtype(model: Model, name: str) -> np.dtype[np.generic]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(model.index.tensors[name].data_type))


def _site(model: Model, position: int, slot: int, bias_value: str) -> Site:
    node = model.graph.node[position]
    if node.input[slot] in model.index.tensors:
        raise _RefusalError("both operands are constants")
    return Site(position, node.input[slot], node.output[0], _residual(model, bias_value))


def _conv(
    model: Model, name: str, dims: tuple[int, ...], node: onnx.NodeProto, position: int, slot: int
) -> Layer:
    if slot != 1 or len(dims) < 3:
        raise _RefusalError(f"is input {slot} of {node.op_type}, not its weight")
    groups = int(_number(node, "group", 1))
    transposed = node.op_type == "ConvTranspose"
    if groups < 1 or dims[0] % groups:
        raise _RefusalError(f"{dims[0]} channels do not divide into {groups} groups")
    if transposed:
        # Each input position adds W^T x to a window of outputs: rows are (output channel, offset).
        inputs, rest = dims[0] // groups, dims[1:]
        split = (groups, inputs, int(np.prod(rest)))
        view = MatrixView(dims, split, (0, 2, 1), (groups, int(np.prod(rest)), inputs))
    else:
        outputs, features = dims[0] // groups, int(np.prod(dims[1:]))
        view = MatrixView(dims, (groups, outputs, features), (0, 1, 2), (groups, outputs, features))
    rank = len(dims) - 2
    window = Window(
        dims[2:],
        _ints(node, "strides", (1,) * rank),
        _ints(node, "dilations", (1,) * rank),
        _ints(node, "pads", (0,) * (2 * rank)),
        str(attribute(node, "auto_pad", "NOTSET")),
    )
    bias, value = (None, node.output[0]) if transposed else _bias(model, node, 2, dims[0])
    return Layer(
        name,
        "conv_transpose" if transposed else "conv",
        view,
        _dtype(model, name),
        (_site(model, position, 0, value),),
        (label(node),),
        window,
        bias,
    )


def _gemm(
    model: Model, name: str, dims: tuple[int, ...], node: onnx.NodeProto, position: int, slot: int
) -> Layer:
    if slot != 1:
        raise _RefusalError(f"is input {slot} of Gemm; only a constant B is supported")
    trans_b, trans_a = bool(_number(node, "transB", 0)), bool(_number(node, "transA", 0))
    alpha = _number(node, "alpha", 1.0)
    if alpha == 0:
        raise _RefusalError("has no effect: alpha of its Gemm is 0")
    out, features = dims if trans_b else dims[::-1]
    view = MatrixView(dims, dims, (0, 1) if trans_b else (1, 0), (1, out, features))
    bias, value = _bias(model, node, 2, out, _number(node, "beta", 1.0))
    return Layer(
        name,
        "gemm",
        view,
        _dtype(model, name),
        (_site(model, position, 0, value),),
        (label(node),),
        bias=bias,
        transposed_input=trans_a,
        alpha=alpha,
    )


def _matmul(
    model: Model, name: str, dims: tuple[int, ...], node: onnx.NodeProto, position: int, slot: int
) -> Layer:
    if len(dims) < 2:
        raise _RefusalError("is a vector")
    batch = int(np.prod(dims[:-2]))
    rows, columns = dims[-2:]
    split = (batch, rows, columns)
    if slot == 1:
        view = MatrixView(dims, split, (0, 2, 1), (batch, columns, rows))
    else:
        view = MatrixView(dims, split, (0, 1, 2), (batch, rows, columns))
    # A left-hand constant mixes rows, so the bias that follows is not one number per output feature.
    bias, value = _bias(model, node, -1, columns) if slot == 1 and batch == 1 else (None, node.output[0])
    return Layer(
        name,
        "matmul",
        view,
        _dtype(model, name),
        (_site(model, position, 1 - slot, value),),
        (label(node),),
        bias=bias,
        transposed_input=slot == 0,
    )


def _gather(
    model: Model, name: str, dims: tuple[int, ...], node: onnx.NodeProto, position: int, slot: int
) -> Layer:
    if slot != 0 or len(dims) != 2 or int(_number(node, "axis", 0)) != 0:
        raise _RefusalError("is gathered, but not as the rows of a table")
    view = MatrixView(dims, dims, (0, 1), (1, dims[0], dims[1]))
    if node.input[1] in model.index.tensors:
        raise _RefusalError("gathered with constant indices")
    return Layer(
        name, "embedding", view, _dtype(model, name), (_site(model, position, 1, ""),), (label(node),)
    )


_BUILDERS = {"Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul, "Gather": _gather}


def _private_constant(model: Model, name: str, size: int) -> bool:
    """True for a float constant of ``size`` elements that exactly one node reads."""
    tensor = model.index.tensors.get(name)
    return (
        tensor is not None
        and tensor.data_type in _FLOATS
        and int(np.prod(tensor.dims)) == size
        and len(model.index.uses.get(name, [])) == 1
        and name not in model.index.outputs
    )


def only_reader(model: Model, value: str) -> onnx.NodeProto | None:
    """Return the one node that reads ``value`` as a direct input, else None."""
    uses = model.index.uses.get(value, [])
    if len(uses) != 1 or uses[0].slot < 0 or value in model.index.outputs:
        return None
    reader: onnx.NodeProto = model.graph.node[uses[0].index]
    return reader


def _bias(
    model: Model, node: onnx.NodeProto, slot: int, size: int, scale: float = 1.0
) -> tuple[Bias | None, str]:
    """Find the constant that shifts the node's output, and the value that holds the shifted output."""
    output = node.output[0]
    if 0 <= slot < len(node.input) and node.input[slot]:
        usable = scale != 0 and _private_constant(model, node.input[slot], size)
        # C of a Gemm may be a column, one number for each row of the input.
        usable = usable and (node.op_type == "Conv" or _is_per_feature(model, node, node.input[slot]))
        return (Bias(node.input[slot], 1, scale) if usable else None), output
    reader = only_reader(model, output)
    if reader is None or reader.domain not in ("", "ai.onnx"):
        return None, output
    # After a MatMul of three or more axes it would normalise tokens, not features.
    normalised = reader.op_type == "BatchNormalization" and node.op_type != "MatMul"
    if normalised and _private_constant(model, reader.input[3], size):
        return Bias(reader.input[3], -1, 1.0), output
    if reader.op_type == "Add":
        other = reader.input[1] if reader.input[0] == output else reader.input[0]
        if _private_constant(model, other, size) and _is_per_feature(model, node, other):
            return Bias(other, 1, 1.0), reader.output[0]
    return None, output


def _is_per_feature(model: Model, node: onnx.NodeProto, constant: str) -> bool:
    """True when ``constant`` broadcasts along the output features: the last axis, axis 1 of a Conv."""
    dims = list(model.index.tensors[constant].dims)
    size = int(np.prod(dims))
    if node.op_type == "Conv":
        rank = len(next(model.index.tensors[i].dims for i in node.input[1:2] if i in model.index.tensors))
        return len(dims) >= rank - 1 and dims[len(dims) - rank + 1] == size
    return bool(dims) and dims[-1] == size


def _residual(model: Model, value: str) -> str:
    """Return the other operand when ``value`` only goes into an Add of two activations."""
    reader = only_reader(model, value) if value else None
    if reader is None or reader.op_type != "Add" or reader.domain not in ("", "ai.onnx"):
        return ""
    other = reader.input[1] if reader.input[0] == value else reader.input[0]
    return "" if other == value or other in model.index.tensors else other
