"""Find the prunable weights of a model and say why others are left alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.attributes import attribute
from onnxprune.errors import ModelError
from onnxprune.layers.layer import FLOATS, Layer, RefusalError, Skip
from onnxprune.layers.views import BUILDERS
from onnxprune.model import Model, Use, constant_tensor, label, subgraphs

_QUANTIZED = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}


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
                raise RefusalError(f"too small: {size} elements, --min-size is {min_size}")
            layer = _build(model, name, tensor)
            _check_values(model, layer)
        except RefusalError as refusal:
            skips.append(Skip(name, nodes[0] if nodes else "", size, str(refusal)))
            continue
        layers.append(layer)
    for node in model.graph.node:
        for name, tensor in _inside(node):
            size = int(np.prod(tensor.dims)) if tensor.dims else 1
            if _worth_naming(tensor, size):
                skips.append(Skip(name, label(node), size, f"inside the subgraph of {label(node)}"))
    layers.sort(key=lambda layer: (layer.sites[0].node, layer.name))
    return tuple(layers), tuple(skips)


def _check_values(model: Model, layer: Layer) -> None:
    """Refuse a table with infinite values (scores of what must not be attended to), raise for the others."""
    values = model.array(layer.name).astype(np.float32)
    if np.isfinite(values).all():
        return
    if layer.kind == "embedding" and not np.isnan(values).any():
        raise RefusalError("a table with infinite values")
    raise ModelError(
        f"weight {layer.name!r} of node {layer.nodes[0]!r} holds NaN or infinite values",
        f"--exclude '{layer.name}' leaves it alone",
    )


def _worth_naming(tensor: TensorProto, size: int) -> bool:
    """Scalars, vectors (biases, norm scales) and shape arithmetic are not worth a line in the report."""
    return size >= 16 and is_matrix(tensor)


def is_matrix(tensor: TensorProto) -> bool:
    """Whether a stored tensor is numbers with two axes at least, of which the globs decide on their own."""
    return sum(dim > 1 for dim in tensor.dims) >= 2 and tensor.data_type in FLOATS | _QUANTIZED


def why_left_alone(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> str:
    """Return why what has these names is not to change, empty where it may.

    Args:
        names: of a weight and of the nodes that use it.
        include: globs; empty means all.
        exclude: globs.
    """
    for pattern in exclude:
        if any(fnmatchcase(item, pattern) for item in names):
            return f"excluded by --exclude {pattern}"
    if include and not any(fnmatchcase(item, pattern) for item in names for pattern in include):
        return "not matched by any --include"
    return ""


def _inside(node: onnx.NodeProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield the constants that the subgraphs of a node hold themselves, however deep."""
    for graph in subgraphs(node):
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
        for inner in graph.node:
            if (tensor := constant_tensor(inner)) is not None and inner.output:
                yield inner.output[0], tensor
            yield from _inside(inner)


def _check_selected(name: str, nodes: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> None:
    reason = why_left_alone((name, *nodes), include, exclude)
    if reason:
        raise RefusalError(reason)


def _build(model: Model, name: str, tensor: TensorProto) -> Layer:
    """Build the layer of weight ``name``; every one of its uses must give the same matrix view."""
    if tensor.data_type in _QUANTIZED:
        raise RefusalError("quantized")
    uses = model.index.uses.get(name, [])
    if not uses:
        raise RefusalError("no node uses it")
    if name in model.index.outputs:
        raise RefusalError("is a graph output")
    own = [use for use in uses if not _reads_table(model, name, use)]
    found = [_from_use(model, name, tuple(tensor.dims), use.index, use.slot) for use in own]
    first = found[0]
    for other in found[1:]:
        if (other.kind, other.view, other.window, other.transposed_input) != (
            first.kind,
            first.view,
            first.window,
            first.transposed_input,
        ):
            raise RefusalError(f"shared by {first.nodes[0]} and {other.nodes[0]} in different roles")
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


def _reads_table(model: Model, name: str, use: Use) -> bool:
    """Whether a product takes the rows of an embedding table as its output features: the last layer's weight.

    Such a table is solved as one, row by row; what that does to the product shows in the model's output.
    """
    nodes, uses = model.graph.node, model.index.uses
    if not any(nodes[other.index].op_type == "Gather" and other.slot == 0 for other in uses[name]):
        return False
    node = nodes[use.index]
    if use.slot == 0 and node.op_type == "Transpose" and len(model.index.tensors[name].dims) == 2:
        value = node.output[0]
        readers = [(nodes[other.index], other.slot) for other in uses.get(value, ())]
        turned = attribute(node, "perm", (1, 0)) in ((1, 0), [1, 0]) and value not in model.index.outputs
        return turned and bool(readers) and all(_multiplies(reader, slot, False) for reader, slot in readers)
    return _multiplies(node, use.slot, True)


def _multiplies(node: onnx.NodeProto, slot: int, rows: bool) -> bool:
    """Whether a node multiplies by the matrix at ``slot``, its rows (or columns) being output features."""
    if slot != 1 or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "MatMul":
        return not rows
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0)) is rows


def _from_use(model: Model, name: str, dims: tuple[int, ...], position: int, slot: int) -> Layer:
    node = model.graph.node[position]
    if slot < 0:
        raise RefusalError(f"read inside the subgraph of {label(node)}")
    builder = BUILDERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if builder is None:
        if node.op_type == "Identity":
            raise RefusalError("read through Identity, which only --target-runtime cpu looks through")
        if node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            way = "which is followed only where all readers want the weight in one form"
            raise RefusalError(f"read through {node.op_type}, {way}")
        raise RefusalError(f"used by {node.op_type}, which is not a prunable operator")
    return builder(model, name, dims, node, position, slot)
