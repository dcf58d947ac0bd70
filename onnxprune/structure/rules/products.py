"""MatMul, Gemm, Einsum: an axis that is summed over reads the units, the others make or carry them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import onnx

from onnxprune.attributes import attribute
from onnxprune.model import label
from onnxprune.structure.groups import Axis
from onnxprune.structure.labels import SINGLE, Labels, RuleError

Letters = Sequence[Hashable]


def contract(graph: Labels, node: onnx.NodeProto, terms: Sequence[Letters], result: Letters) -> None:
    """Join the axes of two or more operands by their letters, as ``Einsum`` names them.

    Letters that are not in ``result`` are summed over. A weight reads units there; where all operands are
    activations nothing can go, as no weight holds the columns that would have to be zero.
    """
    found: dict[Hashable, Axis] = {}
    weights: dict[Hashable, list[bool]] = {}  # letter -> for each operand with it, whether it is constant
    for name, letters in zip(node.input, terms, strict=False):
        shape, axes = graph.shape(name), graph.read(name)
        if len(shape) != len(letters):
            raise RuleError("operands with another number of axes")
        for size, axis, letter in zip(shape, axes, letters, strict=True):
            if size == 1:
                continue
            # Equal numbers that Expand makes have no columns that could be zero
            weights.setdefault(letter, []).append(name in graph.constants and not graph.is_weak(axis))
            found[letter] = graph.join(found[letter], axis) if letter in found else axis
            if name in graph.constants and len(terms) > 1:
                graph.mark(axis, "producer" if letter in result else "consumer")
    for letter, axis in found.items():
        if letter not in result:
            if not any(weights[letter]):
                graph.pin(axis, f"summed over by {label(node)}, which multiplies two activations")
        elif len(weights[letter]) > 1 and not any(weights[letter]):
            graph.mark(axis, "head")  # a batch of products of activations: attention
    graph.write(node.output[0], [found.get(letter, SINGLE) for letter in result])


def letters_of(graph: Labels, node: onnx.NodeProto) -> tuple[Sequence[Letters], Letters]:
    """Return a letter for each axis of the operands of a product, and for each axis of what it makes.

    Raises:
        RuleError: for forms that are not followed.
    """
    if node.op_type == "Einsum":
        return _of_einsum(node)
    if node.op_type in ("Gemm", "FusedGemm"):
        left = "km" if attribute(node, "transA", 0) else "mk"
        return (left, "nk" if attribute(node, "transB", 0) else "kn"), "mn"
    return _of_matmul(graph, node)


def _of_matmul(graph: Labels, node: onnx.NodeProto) -> tuple[Sequence[Letters], Letters]:
    """``MatMul`` with any number of axes, and FusedMatMul of com.microsoft with its transpositions."""
    a, b = (len(graph.shape(name)) for name in node.input[:2])
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        raise RuleError("transposed batches")
    left: list[Hashable] = ["k"] if a == 1 else [*range(2 - a, 0), "m", "k"]
    right: list[Hashable] = ["k"] if b == 1 else [*range(2 - b, 0), "k", "n"]
    if attribute(node, "transA", 0) and a > 1:
        left[-2:] = left[:-3:-1]
    if attribute(node, "transB", 0) and b > 1:
        right[-2:] = right[:-3:-1]
    batch = [*range(2 - max(a, b, 2), 0)]
    return (left, right), [*batch, *["m"] * (a > 1), *["n"] * (b > 1)]


def _of_einsum(node: onnx.NodeProto) -> tuple[Sequence[Letters], Letters]:
    """``Einsum`` without ellipsis, each letter once in a term."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    sides, arrow, result = equation.partition("->")
    terms = sides.split(",")
    if "." in equation or not arrow or any(len(set(term)) < len(term) for term in terms):
        raise RuleError("an equation that is not followed")
    return terms, result


def product(graph: Labels, node: onnx.NodeProto) -> None:
    """``MatMul``, FusedMatMul and ``Einsum``."""
    contract(graph, node, *letters_of(graph, node))


def gemm(graph: Labels, node: onnx.NodeProto) -> None:
    """``Gemm`` and FusedGemm: the bias goes along with the columns of the output."""
    product(graph, node)
    if len(node.input) > 2 and node.input[2]:
        shape, axes = graph.shape(node.input[2]), graph.read(node.input[2])
        for size, own, axis in zip(shape[::-1], axes[::-1], graph.read(node.output[0])[::-1], strict=False):
            if size > 1:
                graph.join(axis, own)
