"""Conv and ConvTranspose: plain, depthwise and grouped.

A grouped convolution must keep groups of one size. Either whole groups go (depthwise: each channel is one;
ResNeXt: many small groups), or the same positions within each group (few large groups): whatever leaves
more units.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.attributes import ints, number
from onnxprune.model import label
from onnxprune.structure.groups import Axis
from onnxprune.structure.labels import Labels, RuleError


def convolution(graph: Labels, node: onnx.NodeProto) -> None:
    """Join channels; pin what the window moves over."""
    x, w = graph.read(node.input[0]), graph.read(node.input[1])
    spatial: list[Axis] = [*x[2:]]
    for place in _moved_over(graph, node):
        graph.pin(spatial[place], f"the window of {label(node)} moves over it")
        spatial[place] = f"positions that {label(node)} makes"
    for axis in w[2:]:
        graph.pin(axis, "the window of a convolution")
    groups = int(number(node, "group", 1))
    out = _plain(graph, node) if groups == 1 else _grouped(graph, node, groups)
    if len(node.input) > 2 and node.input[2]:
        graph.join(out, graph.read(node.input[2])[0])
    batch = x[0]
    if len(node.input) > 3 and node.input[3]:  # FusedConv adds it to what it makes
        own = graph.read(node.input[3])
        batch, out = graph.join(batch, own[0]), graph.join(out, own[1])
        for axis in own[2:]:
            graph.pin(axis, f"{label(node)} adds it to positions that it makes")
    graph.write(node.output[0], [batch, out, *spatial])


def _moved_over(graph: Labels, node: onnx.NodeProto) -> list[int]:
    """Return the spatial axes that a window moves over; one of size 1 leaves positions as they are."""
    count = len(graph.shape(node.input[0])) - 2
    kernel, steps = graph.shape(node.input[1])[2:], ints(node, "strides", (1,) * count)
    same = [m == n for m, n in zip(graph.shape(node.input[0]), graph.shape(node.output[0]), strict=True)][2:]
    pads = ints(node, "pads", (0,) * (2 * count))
    alone = node.op_type == "Conv"  # FusedConv may add something
    return [k for k in range(count) if not (alone and kernel[k] == steps[k] == 1 and same[k] and not pads[k])]


def _plain(graph: Labels, node: onnx.NodeProto) -> Axis:
    w = graph.read(node.input[1])
    rows, columns = (w[0], w[1]) if node.op_type != "ConvTranspose" else (w[1], w[0])
    graph.join(graph.read(node.input[0])[1], columns)
    graph.mark(rows, "producer")
    graph.mark(columns, "consumer")
    return rows


def _grouped(graph: Labels, node: onnx.NodeProto, groups: int) -> Axis:
    """Return the axis of the output's channels."""
    x, w = graph.read(node.input[0])[1], graph.read(node.input[1])
    channels, outputs = graph.shape(node.input[0])[1], graph.shape(node.output[0])[1]
    if channels % groups or outputs % groups:
        raise RuleError("channels that do not divide into its groups")
    inner, outer = channels // groups, outputs // groups
    transposed = node.op_type == "ConvTranspose"
    source = graph.as_labels(x, channels).reshape(groups, inner)
    if groups >= min(inner, outer):
        graph.pin(w[1], "the channels inside a group of a convolution, whole groups go")
        graph.join(source.ravel(), w[0]) if transposed else graph.tie(_both(graph, source, w[0], groups))
        if not transposed:
            return w[0]
        return np.repeat(graph.tie(source), outer)
    columns = graph.tie(source.T)
    if transposed:
        graph.join(source.ravel(), w[0])
        graph.mark(w[0], "consumer")
        graph.mark(w[1], "producer")
        return np.tile(graph.as_labels(w[1], outer), groups)
    graph.join(columns, w[1])
    graph.mark(w[1], "consumer")
    graph.mark(w[0], "producer")
    graph.tie(graph.as_labels(w[0], outputs).reshape(groups, outer).T)
    return w[0]


def _both(graph: Labels, source: NDArray[np.int64], rows: Axis, groups: int) -> NDArray[np.int64]:
    """Return the labels of the inputs and outputs of each group, (groups, inputs + outputs)."""
    made = graph.as_labels(rows, source.size if isinstance(rows, str) else len(rows))
    return np.concatenate([source, made.reshape(groups, -1)], 1)
