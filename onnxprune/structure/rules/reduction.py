"""Pooling, Resize and reductions: they keep some axes and use others up."""

from __future__ import annotations

import onnx

from onnxprune.attributes import ints, number
from onnxprune.model import label
from onnxprune.structure.groups import Axis
from onnxprune.structure.labels import Labels
from onnxprune.structure.means import MeanError, made_up_for
from onnxprune.structure.rules.parts import axis_of
from onnxprune.structure.rules.silence import silence

_SUMS = frozenset(("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare"))


def pool(graph: Labels, node: onnx.NodeProto) -> None:
    """Pooling over positions, one channel at a time."""
    x = graph.read(node.input[0])
    for axis in x[2:]:
        graph.pin(axis, f"the window of {label(node)} moves over it")
    for name in node.output:
        if name:
            graph.write(name, [*x[:2], *[f"positions that {label(node)} makes"] * (len(x) - 2)])


def resize(graph: Labels, node: onnx.NodeProto) -> None:
    """Resize and Upsample: axes that keep their size keep their positions."""
    x, old, new = graph.read(node.input[0]), graph.shape(node.input[0]), graph.shape(node.output[0])
    axes: list[Axis] = []
    for place, (axis, m, n) in enumerate(zip(x, old, new, strict=True)):
        if m == n and place < 2:
            axes.append(axis)
        else:
            graph.pin(axis, f"resized by {label(node)}")
            axes.append(f"positions that {label(node)} makes")
    graph.write(node.output[0], axes)


def reduce(graph: Labels, node: onnx.NodeProto) -> None:
    """Reductions: sums and means over units that are zero can shrink, other axes keep their labels."""
    x = graph.read(node.input[0])
    taken = reduced_axes(graph, node, len(x))
    for axis in taken:
        if not isinstance(x[axis], str):
            why = _needs_all(graph, node, axis)
            if why is not None:
                graph.pin(x[axis], f"summed up by {label(node)}{why}")
    if number(node, "keepdims", 1):
        axes: list[Axis] = ["" if place in taken else axis for place, axis in enumerate(x)]
    else:
        axes = [axis for place, axis in enumerate(x) if place not in taken]
    graph.write(node.output[0], axes)


def _needs_all(graph: Labels, node: onnx.NodeProto, axis: int) -> str | None:
    """Return why a reduction needs all units, empty if it always does; None if it does not."""
    if node.op_type not in _SUMS:
        return ""
    if node.op_type == "ReduceMean":
        try:
            made_up_for(graph.model, node.output[0])
        except MeanError as error:
            return f", and {error}"
    why = silence(graph, node.input[0], axis)
    return f", and {why}" if why else None


def reduced_axes(graph: Labels, node: onnx.NodeProto, rank: int) -> set[int]:
    """Return the axes that a reduction takes."""
    axes = ints(node, "axes", ())
    if len(node.input) > 1 and node.input[1]:
        numbers = graph.number(node.input[1])
        axes = () if numbers is None else tuple(int(i) for i in numbers.ravel())
    if not axes and number(node, "noop_with_empty_axes", 0):
        return set()
    return {axis % rank for axis in axes} or set(range(rank))


def pick(graph: Labels, node: onnx.NodeProto) -> None:
    """ArgMax, ArgMin, TopK: the axis they choose on cannot shrink."""
    x = graph.read(node.input[0])
    at = axis_of(node, len(x), -1 if node.op_type == "TopK" else 0)
    graph.pin(x[at], f"{label(node)} chooses on it")
    for name in node.output:
        if not name:
            continue
        if len(graph.shape(name)) == len(x):
            graph.write(name, [*x[:at], f"what {label(node)} chose", *x[at + 1 :]])
        else:
            graph.write(name, [*x[:at], *x[at + 1 :]])
