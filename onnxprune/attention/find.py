"""Find the attention in a graph, decomposed or in one operator, and say why a candidate is none.

A candidate is every softmax: attention multiplies what comes out by values, and what goes in is the product
of queries and keys. Scales, masks and clean-up may stand between; Transformer exports differ in little else.
"""

from __future__ import annotations

import math
from dataclasses import replace

import onnx

from onnxprune.attention.block import AttentionBlock, Layout, Projections, Rejected
from onnxprune.attention.fused import FUSED
from onnxprune.attention.walk import Walker, Weighted
from onnxprune.attributes import attribute
from onnxprune.model import Model, label, subgraphs
from onnxprune.passes.shapes import Shapes, infer

_TO_SCORES = frozenset((
    "Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Clip",
    "Tanh", "Min", "Max", "Dropout", "QuantizeLinear", "DequantizeLinear", "Transpose", "Expand",
))  # fmt: skip
_TO_VALUES = frozenset((
    "Cast", "Identity", "Dropout", "Where", "Mul", "Div", "Reshape", "Squeeze", "Unsqueeze", "Transpose",
    "QuantizeLinear", "DequantizeLinear", "Slice", "Expand",
))  # fmt: skip
_PRODUCTS = ("MatMul", "FusedMatMul", "Einsum", "Gemm")


class _RejectedError(Exception):
    """Raised inside this module with the reason."""


def find_attention(model: Model) -> tuple[tuple[AttentionBlock, ...], tuple[Rejected, ...]]:
    """Return the attention blocks in graph order, and the candidates that are none with the reason.

    Weights are named as :func:`onnxprune.layers.find_layers` names layers. Forms: products around a softmax
    (``MatMul``, ``FusedMatMul``, ``Einsum``; scale before or after, mask by ``Add`` or ``Where``, keys and
    values repeated for groups of heads, fused projections), ONNX ``Attention``, and of com.microsoft
    ``Attention``, ``MultiHeadAttention``, ``GroupQueryAttention``.
    """
    walker, shapes = Walker(model), Shapes({})
    blocks: list[AttentionBlock] = []
    rejected: list[Rejected] = []
    for position, node in enumerate(model.graph.node):
        kind = _kind(node)
        if kind and not shapes.types:
            shapes = Shapes(infer(model))  # takes long, and most models have no candidate
        try:
            if kind == "softmax":
                block = _decomposed(walker, shapes, position)
            elif kind == "fused":
                block = FUSED[node.domain, node.op_type].block(walker, position)
            elif kind == "unknown":
                raise _RejectedError(f"{node.op_type} does not give its probabilities")
            else:
                rejected.extend(_inside(node))
                continue
            blocks.append(_surrounded(walker, shapes, block))
        except _RejectedError as refusal:
            rejected.append(Rejected(label(node), str(refusal)))
    return tuple(blocks), tuple(rejected)


def _kind(node: onnx.NodeProto) -> str:
    if (node.domain, node.op_type) in FUSED:
        return "fused"
    if node.op_type in ("Softmax", "BiasSoftmax"):
        return "softmax"
    return "unknown" if "Attention" in node.op_type else ""


def _inside(node: onnx.NodeProto) -> list[Rejected]:
    """Candidates inside the subgraphs of ``node``."""
    return [
        Rejected(label(inner), f"inside the subgraph of {label(node)}, where values cannot be read")
        for graph in subgraphs(node)
        for inner in graph.node
        if _kind(inner)
    ]


def _decomposed(walker: Walker, shapes: Shapes, position: int) -> AttentionBlock:
    node = walker.model.graph.node[position]
    _check_axis(walker.model, shapes, node)
    probabilities, value, product, layout = _values(walker, node)
    if value in walker.constant:
        raise _RejectedError("what it chooses among are weights: a mixture or a table, not tokens")
    query, key = _scores(walker, node)
    if key in walker.constant:
        raise _RejectedError("its scores come from a weight: pooling or a classifier, not keys")
    return AttentionBlock(
        label(node),
        "decomposed",
        position,
        product.output[0],
        probabilities,
        query,
        key,
        value,
        _mask(walker, node, query, key),
        _heads(shapes, probabilities),
        layout,
        Projections(walker.projection(query), walker.projection(key), walker.projection(value)),
    )


def _check_axis(model: Model, shapes: Shapes, node: onnx.NodeProto) -> None:
    """The keys lie on the last axis; before opset 13 all axes behind ``axis`` were one."""
    axis = attribute(node, "axis", -1 if model.opset >= 13 else 1)
    rank = shapes.rank(node.input[0]) or shapes.rank(node.output[0])
    if not isinstance(axis, int) or axis == -1 or node.op_type == "BiasSoftmax":
        return
    if (rank is not None and axis not in (-1, rank - 1)) or (rank is None and axis < 2):
        raise _RejectedError(f"normalises axis {axis}, not the last one")


def _values(walker: Walker, softmax: onnx.NodeProto) -> tuple[str, str, onnx.NodeProto, Layout]:
    """Return the probabilities, the values they multiply, the product, and how its result lies."""
    turned: set[str] = set()  # values with the keys on the last axis but one
    for current, _, node, slot in walker.forward(softmax.output[0], _TO_VALUES):
        if node.op_type == "Transpose" or current in turned:
            turned.update(node.output)
        if node.op_type not in _PRODUCTS or slot > 1:
            continue
        if node.op_type == "Einsum":
            return current, node.input[1 - slot], node, _einsum_layout(node, slot)
        if current in turned and slot == 1:
            return _before_transpose(walker, current), node.input[0], node, "features first"
        if current not in turned and slot == 0:
            return current, node.input[1], node, "heads first"
        raise _RejectedError(f"{label(node)} does not sum over the axis that it normalises")
    raise _RejectedError("its result enters no product: a classifier or a gate")


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return bool(attribute(node, name, 0))


def _before_transpose(walker: Walker, value: str) -> str:
    nodes = (node for _, node in walker.back(value, _TO_VALUES))
    return next((str(node.input[0]) for node in nodes if node.op_type == "Transpose"), value)


def _einsum_layout(node: onnx.NodeProto, slot: int) -> Layout:
    """Return how the result of ``Einsum`` lies; the probabilities are (batch, heads, queries, keys)."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    sides, _, result = equation.partition("->")
    terms = sides.split(",")
    probabilities = terms[slot] if len(terms) == 2 else ""
    if len(probabilities) == 4 and len(result) == 4 and probabilities[3] not in result:
        if result[:3] == probabilities[:3]:
            return "heads first"
        if result[:3] == probabilities[0] + probabilities[2] + probabilities[1]:
            return "heads second"
    raise _RejectedError(f"Einsum {equation!r} is not a product of (batch, heads, queries, keys) with values")


def _scores(walker: Walker, softmax: onnx.NodeProto) -> tuple[str, str]:
    """Return the queries and the keys of the nearest product before ``softmax``.

    The mask may come from a product as well: what comes from projections goes first.
    """
    found: list[tuple[bool, str, str]] = []
    for _, node in walker.back(softmax.input[0], _TO_SCORES):
        if node.op_type in _PRODUCTS and len(node.input) > 1:
            query, key = node.input[0], node.input[1]
            projected = walker.projection(query) is not None and walker.projection(key) is not None
            found.append((projected, query, key))
    if not found:
        raise _RejectedError("no product of queries and keys leads to it")
    _, query, key = max(found, key=lambda item: item[0])  # the first of equals
    return query, key


def _mask(walker: Walker, softmax: onnx.NodeProto, query: str, key: str) -> str:
    """Return what is added to the scores, or what ``Where`` chooses by."""
    if softmax.op_type == "BiasSoftmax":
        return str(softmax.input[1])
    chain = {name for name, node in walker.back(softmax.input[0], _TO_SCORES) if _leads(walker, name, query)}
    for name, node in walker.back(softmax.input[0], _TO_SCORES):
        if name in chain and node.op_type in ("Add", "Where", "Sub"):
            others = [i for i in node.input if i and i not in chain]
            if others:
                return str(others[0])
    return ""


def _leads(walker: Walker, value: str, query: str) -> bool:
    """Whether ``value`` comes from the product with ``query``."""
    return any(query in node.input for _, node in walker.back(value, _TO_SCORES))


def _heads(shapes: Shapes, value: str) -> int | None:
    """Return axis 1 of a value with four axes."""
    dims = shapes.dims(value)
    heads = dims[1] if dims is not None and len(dims) == 4 else None
    return heads if isinstance(heads, int) else None


def _surrounded(walker: Walker, shapes: Shapes, block: AttentionBlock) -> AttentionBlock:
    """Add what follows the context: the output projection, the residual, the heads that they tell."""
    projection = walker.output_projection(block.context)
    heads = block.heads if block.heads is not None else _heads(shapes, block.query)
    if projection is None:
        return replace(block, heads=heads)
    weights = replace(block.weights, output=projection.weight)
    output, residual = walker.addition(walker.model.graph.node[projection.node].output[0])
    if heads is None and block.layout == "heads first":
        dims, features = shapes.dims(block.value), _features(walker.model, projection)
        size = dims[-1] if dims else None
        heads = features // size if isinstance(size, int) and features and features % size == 0 else None
    return replace(block, weights=weights, output=output, residual=residual, heads=heads)


def _features(model: Model, found: Weighted) -> int | None:
    """Return how many features a product reads."""
    node, dims = model.graph.node[found.node], model.index.tensors[found.weight].dims
    if node.op_type == "Conv":
        return int(math.prod(dims[1:]))
    if len(dims) != 2 or found.slot != 0:
        return None
    return int(dims[1] if _flag(node, "transB") else dims[0])
