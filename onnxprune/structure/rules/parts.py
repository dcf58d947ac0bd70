"""Operators that put axes together and take them apart: Concat, Split, Slice, Gather, Pad."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.attributes import attribute, ints, number
from onnxprune.model import label
from onnxprune.structure.groups import Axis
from onnxprune.structure.labels import Labels, RuleError


def axis_of(node: onnx.NodeProto, rank: int, default: int = 0) -> int:
    """Return the attribute ``axis``, counted from the front."""
    return int(number(node, "axis", default)) % rank


def concat(graph: Labels, node: onnx.NodeProto) -> None:
    """``Concat``: labels follow each other on one axis; on the others equal positions go together."""
    shape = graph.shape(node.output[0])
    at = axis_of(node, len(shape))
    names = graph.node_inputs(node)
    axes: list[Axis] = [*graph.read(names[0])]
    for name in names[1:]:
        for place, axis in enumerate(graph.read(name)):
            if place != at:
                axes[place] = graph.join(axes[place], axis)
    pieces = [(graph.read(name)[at], graph.shape(name)[at]) for name in names]
    if any(not isinstance(axis, str) for axis, _ in pieces):
        axes[at] = np.concatenate([graph.as_labels(axis, size) for axis, size in pieces])
    else:
        axes[at] = next((str(axis) for axis, size in pieces if size > 1), "rows put together by a Concat")
    graph.write(node.output[0], axes)


def split(graph: Labels, node: onnx.NodeProto) -> None:
    """``Split``: each output has its part of the labels."""
    axes = graph.read(node.input[0])
    at, begin = axis_of(node, len(axes)), 0
    axis = axes[at]
    if len(node.input) > 1 and node.input[1] and graph.varies(node.input[1]).any():
        graph.pin(axis, f"how {label(node)} takes it apart follows from the input")
    for name in node.output:
        size = graph.shape(name)[at]
        piece = axis if isinstance(axis, str) else axis[begin : begin + size]
        _keep_single(graph, node, axis, piece)
        graph.write(name, [*axes[:at], piece, *axes[at + 1 :]])
        begin += size


def _keep_single(graph: Labels, node: onnx.NodeProto, before: Axis, after: Axis) -> None:
    """Pin a position that is taken out alone: an axis of size 1 has no labels, and is broadcast."""
    if len(before) > 1 and len(after) == 1:
        graph.pin(after, f"{label(node)} takes it alone")


def slice_ranges(graph: Labels, node: onnx.NodeProto) -> dict[int, tuple[int, int, int]]:
    """Return axis -> (start, end, step) of a ``Slice``, as Python slices them.

    Raises:
        RuleError: when they are not known.
    """
    rank = len(graph.shape(node.input[0]))
    if len(node.input) == 1:
        starts, ends = ints(node, "starts", ()), ints(node, "ends", ())
        axes, steps = ints(node, "axes", tuple(range(len(starts)))), (1,) * len(starts)
    else:
        numbers = [graph.number(name) if name else None for name in node.input[1:]]
        if numbers[0] is None or numbers[1] is None:
            raise RuleError("bounds that are not known")
        starts, ends = (tuple(int(i) for i in array.ravel()) for array in (numbers[0], numbers[1]))
        given = [*numbers[2:], None, None][:2]
        axes = tuple(range(len(starts))) if given[0] is None else tuple(int(i) for i in given[0].ravel())
        steps = (1,) * len(starts) if given[1] is None else tuple(int(i) for i in given[1].ravel())
    return {a % rank: (s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)}


def slices(graph: Labels, node: onnx.NodeProto) -> None:
    """``Slice``: the labels between the bounds."""
    axes, shape = [*graph.read(node.input[0])], graph.shape(node.input[0])
    bounds = slice_ranges(graph, node)
    varying = np.zeros(len(bounds), bool)
    for name in (name for name in node.input[1:] if name):
        varying |= graph.varies(name)
    for (at, (start, end, step)), follows in zip(bounds.items(), varying, strict=False):
        axis = axes[at]
        if isinstance(axis, str):
            continue
        if follows:
            graph.pin(axis, f"where {label(node)} takes positions follows from the input")
            axes[at] = f"positions that {label(node)} takes"
            continue
        taken = np.arange(shape[at])[slice(start, None if step < 0 and end < -shape[at] else end, step)]
        if step != 1:
            graph.pin(axis, f"{label(node)} takes each {step}th position")
        axes[at] = axis[taken]
        _keep_single(graph, node, axis, axes[at])
    graph.write(node.output[0], axes)


def gather(graph: Labels, node: onnx.NodeProto) -> None:
    """``Gather``: an embedding table makes features; an axis that is picked from cannot shrink."""
    axes = graph.read(node.input[0])
    at = axis_of(node, len(axes))
    graph.pin(axes[at], f"{label(node)} picks from it by index")
    for axis in graph.read(node.input[1]):
        graph.pin(axis, f"indices of {label(node)}")
    if node.input[0] in graph.constants:
        for axis in (*axes[:at], *axes[at + 1 :]):
            graph.mark(axis, "producer")
            graph.mark(axis, "table")
    indices = [f"indices of {label(node)}"] * len(graph.shape(node.input[1]))
    graph.write(node.output[0], [*axes[:at], *indices, *axes[at + 1 :]])


def pad_widths(graph: Labels, node: onnx.NodeProto) -> tuple[list[tuple[int, int]], bool]:
    """Return (before, after) for each axis of a ``Pad``, and whether they are known for every input.

    Raises:
        RuleError: when they are not known.
    """
    rank = len(graph.shape(node.input[0]))
    if len(node.input) == 1:
        pads = list(ints(node, "pads", ints(node, "paddings", ())))
        axes, fixed = list(range(rank)), True
    else:
        array = graph.number(node.input[1])
        if array is None:
            raise RuleError("widths that are not known")
        pads, fixed = [int(i) for i in array.ravel()], node.input[1] in graph.unchanging
        chosen = graph.number(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        axes = list(range(rank)) if chosen is None else [int(i) % rank for i in chosen.ravel()]
    widths = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(axes)])
    return widths, fixed


def pad(graph: Labels, node: onnx.NodeProto) -> None:
    """``Pad``: constant positions on an axis with labels (widening shortcuts) can go as others do."""
    shape, axes = graph.shape(node.output[0]), [*graph.read(node.input[0])]
    if graph.shape(node.input[0]) == shape:
        graph.write(node.output[0], axes)
        return
    widths, fixed = pad_widths(graph, node)
    constant = str(attribute(node, "mode", "constant")) == "constant"
    for at, (before, after) in enumerate(widths):
        axis = axes[at]
        if isinstance(axis, str) or not (before or after):
            continue
        if not constant or not fixed or before < 0 or after < 0:
            graph.pin(axis, f"{label(node)} pads it")
            axes[at] = f"positions that {label(node)} pads"
        else:
            axes[at] = np.concatenate([graph.fresh(before), axis, graph.fresh(after)])
    graph.write(node.output[0], axes)
