"""Which axis carries the removal where a Reshape splits one: look ahead at what becomes of each.

An axis that is the batch of a product of activations is one of attention heads: each goes as a whole. One
that is normalised, summed over or taken apart cannot shrink. Else the longest axis leaves most units: within
the groups of a channel shuffle that is the position in the group, so that all groups stay equal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.attributes import attribute, ints, number
from onnxprune.structure.labels import Labels, RuleError
from onnxprune.structure.rules.elementwise import OPERATORS
from onnxprune.structure.rules.grid import blocks, only_axis, rows, unfold

HEADS, NEUTRAL, BAD = 2, 1, 0
_REACH = 60  # nodes
_KEEP = frozenset(("InstanceNormalization", "BatchNormalization", "Conv", "ConvTranspose"))
_TAKE = frozenset(("Split", "Slice", "Concat", "Gather", "TopK", "CumSum"))
_NORM = frozenset(("Softmax", "LogSoftmax", "LpNormalization", "Hardmax", "ArgMax", "ArgMin"))


@dataclass(frozen=True, eq=False)
class Track:
    """Where the positions of the axis lie that is followed: ``labels`` on one axis of a value."""

    value: str
    axis: int
    labels: NDArray[np.int64]

    @property
    def place(self) -> tuple[str, int]:
        """The value and its axis."""
        return self.value, self.axis

    def at(self, value: str, axis: int, labels: NDArray[np.int64] | None = None) -> Track:
        """Return the track in another value."""
        return Track(value, axis, self.labels if labels is None else labels)


def choose(graph: Labels, value: str, axes: Sequence[int], full: NDArray[np.int64]) -> int:
    """Return which of the ``axes`` of ``value`` is to carry the removal: its place among them.

    Args:
        graph: the labels so far.
        value: what a Reshape makes.
        axes: of the value.
        full: the labels of the positions on these axes, an axis for each.
    """

    def worth(place: int) -> tuple[int, int, int]:
        labels = rows(full, place)[:, 0]
        return _verdict(graph, Track(value, axes[place], labels)), len(np.unique(labels)), place

    return max(range(len(axes)), key=worth)


def _verdict(graph: Labels, start: Track) -> int:
    """Follow the axis forward; HEADS if it is found to be the heads of attention, BAD if it cannot shrink."""
    waiting, seen, worst = deque([start]), {start.place}, NEUTRAL
    while waiting and len(seen) < _REACH:
        track = waiting.popleft()
        for use in graph.model.index.uses.get(track.value, ()):
            if use.slot < 0:
                return BAD
            node = graph.model.graph.node[use.index]
            try:
                steps = [*_step(graph, node, use.slot, track)]
            except (KeyError, ValueError, IndexError, RuleError):  # what the operator's rule will refuse too
                steps = [BAD]
            for step in steps:
                if step == HEADS:
                    return HEADS
                if isinstance(step, int):
                    worst = min(worst, step)
                elif step.place not in seen:
                    seen.add(step.place)
                    waiting.append(step)
    return worst


def _step(graph: Labels, node: onnx.NodeProto, slot: int, track: Track) -> Iterator[int | Track]:
    """Yield where a track goes on in the outputs of a node that reads it, or a verdict."""
    op, sizes, out, axis = node.op_type, graph.sizes, node.output[0], track.axis
    old = sizes[node.input[slot]]
    if op in ("MatMul", "FusedMatMul", "Einsum"):
        yield _product(graph, node, slot, axis)
    elif op in OPERATORS or op == "Expand":
        yield track.at(out, axis + len(sizes[out]) - len(old))
    elif op == "Transpose":
        yield track.at(out, ints(node, "perm", tuple(range(len(old)))[::-1]).index(axis))
    elif op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        yield from _reshaped(old, sizes[out], out, track)
    elif op in _TAKE:
        yield from _taken(node, slot, track, old, sizes)
    elif op in _NORM:
        at = int(number(node, "axis", -1)) % len(old)
        yield BAD if at == axis else track.at(out, axis)
    elif op.startswith("Reduce"):
        yield track.at(out, axis) if sizes[out][axis : axis + 1] == old[axis : axis + 1] else BAD
    elif op in ("LayerNormalization", "RMSNormalization"):
        yield track.at(out, axis) if axis < int(number(node, "axis", -1)) % len(old) else BAD
    elif op in _KEEP:
        yield NEUTRAL if axis == 1 else BAD
    elif op in ("Resize", "Upsample") and sizes[out][axis] != old[axis]:
        yield BAD
    elif "Attention" in op and slot < 3:
        yield HEADS if len(old) == 4 and axis == 1 else BAD
    elif op == "RotaryEmbedding" and slot == 0:
        yield track.at(out, axis) if axis < len(old) - 1 else BAD
    elif op == "Tile" and slot == 0:
        yield track.at(out, axis, np.tile(track.labels, sizes[out][axis] // old[axis]))
    elif slot == 0 and len(sizes[out]) == len(old) and sizes[out][axis] == old[axis]:
        yield track.at(out, axis)  # Pad, pooling and others


def _taken(
    node: onnx.NodeProto, slot: int, track: Track, old: tuple[int, ...], sizes: Mapping[str, tuple[int, ...]]
) -> Iterator[int | Track]:
    """Follow an axis through what puts axes together or takes them apart."""
    axis, out = track.axis, node.output[0]
    at = int(number(node, "axis", 0)) % len(old)
    if node.op_type == "Slice":
        yield track.at(out, axis) if sizes[out][axis] == old[axis] else BAD
    elif at == axis or slot:
        yield BAD if node.op_type != "Concat" or at == axis else track.at(out, axis)
    elif node.op_type == "Gather":
        yield track.at(out, axis if axis < at else axis + len(sizes[node.input[1]]) - 1)
    else:
        yield from (track.at(name, axis) for name in node.output if name)


def _product(graph: Labels, node: onnx.NodeProto, slot: int, axis: int) -> int:
    if any(name in graph.constants for name in node.input[:2]):
        return NEUTRAL
    if node.op_type != "Einsum":
        return HEADS if axis < len(graph.sizes[node.input[slot]]) - 2 else NEUTRAL
    sides, _, result = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    terms = sides.split(",")
    letter = terms[slot][axis]
    return HEADS if all(letter in text for text in (*terms, result)) else NEUTRAL


def _reshaped(old: tuple[int, ...], new: tuple[int, ...], out: str, track: Track) -> Iterator[int | Track]:
    for left, right in blocks(old, new):
        if track.axis in left:
            sizes = [old[axis] for axis in left]
            full = unfold(track.labels, left.index(track.axis), sizes, [new[axis] for axis in right])
            place = only_axis(full)
            if place is not None:
                yield track.at(out, right[place], rows(full, place)[:, 0])
