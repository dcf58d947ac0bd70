"""Which axis carries the removal where a Reshape splits one: look ahead at what becomes of each.

An axis that is the batch of a product of activations is one of attention heads: each goes as a whole. One
that is normalised, summed over or taken apart cannot shrink. Else the longest axis leaves most units: within
the groups of a channel shuffle that is the position in the group, so that all groups stay equal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import onnx

from onnxprune.attributes import attribute, ints, number
from onnxprune.structure.labels import Labels
from onnxprune.structure.rules.elementwise import OPERATORS

HEADS, NEUTRAL, BAD = 2, 1, 0
_REACH = 60  # nodes
_KEEP = frozenset(("InstanceNormalization", "BatchNormalization", "Conv", "ConvTranspose"))
_TAKE = frozenset(("Split", "Slice", "Concat", "Gather", "TopK", "CumSum"))
_NORM = frozenset(("Softmax", "LogSoftmax", "LpNormalization", "Hardmax", "ArgMax", "ArgMin"))


def choose(graph: Labels, value: str, axes: list[int]) -> int:
    """Return which of the ``axes`` of ``value`` is to carry the removal."""
    shape = graph.shape(value)
    return max(axes, key=lambda axis: (_verdict(graph, value, axis), shape[axis], axis))


def _verdict(graph: Labels, value: str, axis: int) -> int:
    """Follow the axis forward; HEADS if it is found to be the heads of attention, BAD if it cannot shrink."""
    waiting, seen, worst = deque([(value, axis)]), {(value, axis)}, NEUTRAL
    while waiting and len(seen) < _REACH:
        current = waiting.popleft()
        for use in graph.model.index.uses.get(current[0], ()):
            if use.slot < 0:
                return BAD
            node = graph.model.graph.node[use.index]
            try:
                steps = [*_step(graph, node, use.slot, current[1])]
            except (KeyError, ValueError, IndexError):  # what the rule of this operator will refuse too
                steps = [BAD]
            for step in steps:
                if step == HEADS:
                    return HEADS
                if isinstance(step, int):
                    worst = min(worst, step)
                elif step not in seen:
                    seen.add(step)
                    waiting.append(step)
    return worst


def _step(graph: Labels, node: onnx.NodeProto, slot: int, axis: int) -> Iterator[int | tuple[str, int]]:
    """Yield where axis ``axis`` of input ``slot`` lies in the output, or a verdict."""
    op, sizes, out = node.op_type, graph.sizes, node.output[0]
    old = sizes[node.input[slot]]
    if op in ("MatMul", "FusedMatMul", "Einsum"):
        yield _product(graph, node, slot, axis)
    elif op in OPERATORS:
        yield out, axis + len(sizes[out]) - len(old)
    elif op == "Transpose":
        yield out, ints(node, "perm", tuple(range(len(old)))[::-1]).index(axis)
    elif op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        yield from _reshaped(old, sizes[out], out, axis)
    elif op == "Expand":
        yield out, axis + len(sizes[out]) - len(old)
    elif op in _TAKE:
        at = int(number(node, "axis", 0)) % len(old)
        if op == "Gather" and slot == 0 and at != axis:
            yield out, axis if axis < at else axis + len(sizes[node.input[1]]) - 1
        elif op == "Slice":
            yield (out, axis) if sizes[out][axis] == old[axis] else BAD
        elif at == axis or op == "Gather":
            yield BAD
        else:
            yield from ((name, axis) for name in node.output if name)
    elif op in _NORM:
        at = int(number(node, "axis", -1)) % len(old)
        yield BAD if at == axis else (out, axis)
    elif op.startswith("Reduce") or op in ("LayerNormalization", "RMSNormalization"):
        yield (out, axis) if len(sizes[out]) == len(old) and sizes[out][axis] == old[axis] and (
            op.startswith("Reduce") or axis < int(number(node, "axis", -1)) % len(old)) else BAD  # fmt: skip
    elif op in _KEEP:
        yield NEUTRAL if axis == 1 else BAD
    elif "Attention" in op and slot < 3:
        yield HEADS if len(old) == 4 and axis == 1 else BAD
    elif op == "RotaryEmbedding" and slot == 0:
        yield (out, axis) if axis < len(old) - 1 else BAD


def _product(graph: Labels, node: onnx.NodeProto, slot: int, axis: int) -> int:
    if any(name in graph.constants for name in node.input[:2]):
        return NEUTRAL
    if node.op_type != "Einsum":
        return HEADS if axis < len(graph.sizes[node.input[slot]]) - 2 else NEUTRAL
    sides, _, result = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    terms = sides.split(",")
    letter = terms[slot][axis]
    return HEADS if all(letter in text for text in (*terms, result)) else NEUTRAL


def _reshaped(
    old: tuple[int, ...], new: tuple[int, ...], out: str, axis: int
) -> Iterator[int | tuple[str, int]]:
    from onnxprune.structure.rules.shaping import blocks

    for left, right in blocks(old, new):
        if axis in left and len(right) == 1:
            yield out, right[0]
