"""The multiplications of a node, as amounts that fall with what is left of its axes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import onnx

from onnxprune.allocation.widths import Side, Work
from onnxprune.attributes import attribute
from onnxprune.model import Model
from onnxprune.slim.branches import Shapes

if TYPE_CHECKING:
    from onnxprune.slim.works import Owners

RECURRENT = ("LSTM", "GRU", "RNN")
ATTENTION = ("Attention", "MultiHeadAttention")
Term = Sequence[Hashable]


def node_works(model: Model, node: onnx.NodeProto, owners: Owners, shapes: Shapes) -> list[Work]:
    """Return the multiplications of a product; nothing of other nodes, and where a shape is not known."""
    if node.domain not in ("", "ai.onnx", "com.microsoft") or not node.output:
        return []
    found = _Operands(model, node, owners, shapes)
    if node.op_type in RECURRENT:
        steps = math.prod(found.shape(0)[:2])
        stored = [slot for slot in (1, 2) if node.input[slot] in model.index.tensors]
        return [Work(float(steps) * math.prod(found.shape(slot)), found.sides(slot)) for slot in stored]
    if node.op_type in ("Conv", "FusedConv", "ConvTranspose"):
        return _convolution(node, found)
    if node.op_type in ATTENTION:
        return _attention(node, found)
    terms = _terms(node, found)
    return _contraction(found, terms) if len(terms) > 1 else []


class _Operands:
    """Shapes and owners of what a node reads, stored or not."""

    def __init__(self, model: Model, node: onnx.NodeProto, owners: Owners, shapes: Shapes) -> None:
        self.node, self.owners, self.shapes, self.stored = node, owners, shapes, model.index.tensors

    def shape(self, slot: int) -> tuple[int, ...]:
        """Return the shape of an input, () where it is not known."""
        name = self.node.input[slot] if slot < len(self.node.input) else ""
        return tuple(self.stored[name].dims) if name in self.stored else self.shapes.get(name, ())

    @property
    def output(self) -> tuple[int, ...]:
        return self.shapes.get(self.node.output[0], ())

    def side(self, slot: int, axis: int) -> Side:
        """Return who owns an axis of an input, counted from the front."""
        name = self.node.input[slot]
        return self.owners.tensor(name, axis) if name in self.stored else self.owners.value(name, axis)

    def sides(self, slot: int) -> tuple[Side, ...]:
        """Return who owns the axes of an input."""
        return tuple(self.side(slot, axis) for axis in range(len(self.shape(slot))))


def _convolution(node: onnx.NodeProto, found: _Operands) -> list[Work]:
    inputs, dims = found.shape(0), found.shape(1)
    if not found.output or len(inputs) < 3 or len(dims) != len(inputs):
        return []
    transposed = node.op_type == "ConvTranspose"
    places = math.prod(inputs) / max(inputs[1], 1) if transposed else math.prod(found.output) / dims[0]
    return [Work(float(places * math.prod(dims)), found.sides(1))]


def _terms(node: onnx.NodeProto, found: _Operands) -> list[Term]:
    """Return a letter for each axis of the operands: those of equal letters run together."""
    if node.op_type == "Einsum":
        equation = str(attribute(node, "equation", "")).replace(" ", "").partition("->")[0]
        return [_spelt(term, len(found.shape(k))) for k, term in enumerate(equation.split(","))]
    if node.op_type in ("Gemm", "FusedGemm"):
        left, right = ["m", "k"], ["k", "n"]
    elif node.op_type in ("MatMul", "FusedMatMul"):
        if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
            return []
        left, right = ([*range(2 - len(found.shape(k)), 0), *last] for k, last in enumerate(("mk", "kn")))
        left, right = (["k"] if len(found.shape(k)) == 1 else term for k, term in enumerate((left, right)))
    else:
        return []
    for name, term in (("transA", left), ("transB", right)):
        if attribute(node, name, 0) and len(term) > 1:
            term[-2:] = term[:-3:-1]
    return [left, right]


def _spelt(term: str, axes: int) -> Term:
    """Return the letters of a term of an equation; ``...`` are the last of the axes that all share."""
    before, dots, after = term.partition("...")
    return [*before, *(range(len(before) + len(after) - axes, 0) if dots else ()), *after]


def _contraction(found: _Operands, terms: Sequence[Term]) -> list[Work]:
    """Return the work of a product of operands whose axes have letters: each combination is one."""
    sizes: dict[Hashable, int] = {}
    sides: dict[Hashable, Side] = {}
    for slot, term in enumerate(terms):
        shape = found.shape(slot)
        if not shape or len(shape) != len(term):
            return []
        for axis, (letter, size) in enumerate(zip(term, shape, strict=True)):
            sizes[letter] = max(size, sizes.get(letter, 1))
            side = found.side(slot, axis)
            if size > 1 and (side.parts or letter not in sides):  # not of an axis that is repeated
                sides[letter] = side
    return [Work(float(math.prod(sizes.values())), tuple(sides.values()))]


def _attention(node: onnx.NodeProto, found: _Operands) -> list[Work]:
    """Return scores and their products with the values, and the projection that com.microsoft's holds."""
    query, output = found.shape(0), found.output
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        dims, past = found.shape(1), found.shape(4)
        if len(query) != 3 or len(dims) != 2 or len(output) != 3:
            return []
        batch, length, width = query
        seen = length + (past[3] if len(past) == 5 else 0)
        keys = (dims[1] - output[2]) / 2  # queries are as wide as keys; values as the output
        heads = Work(float(batch * length * seen * (keys + output[2])), (found.side(1, 1),))
        return [Work(float(batch * length * width * dims[1]), found.sides(1)), heads]
    key = found.shape(1)
    if not len(query) == len(key) == len(output) or len(query) not in (3, 4):
        return []
    amount = math.prod(query[:-1]) * key[-2] * (query[-1] + output[-1])
    return [Work(float(amount), (found.side(0, 2 if len(query) == 3 else 1),))]
