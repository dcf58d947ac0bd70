"""Normalisations: by channel they keep it, over an axis they pin it, over groups they tie the channels."""

from __future__ import annotations

import onnx

from onnxprune.attributes import number
from onnxprune.model import label
from onnxprune.structure.groups import Axis
from onnxprune.structure.labels import Labels
from onnxprune.structure.means import MeanError, is_stored, scaled
from onnxprune.structure.rules.parts import axis_of
from onnxprune.structure.rules.silence import silence


def by_channel(graph: Labels, node: onnx.NodeProto) -> None:
    """BatchNormalization and InstanceNormalization: the parameters go along with the channels."""
    x = [*graph.read(node.input[0])]
    for name in node.input[1:]:
        if name and len(graph.shape(name)) == 1:
            x[1] = graph.join(x[1], graph.read(name)[0])
    if node.op_type == "InstanceNormalization":
        for axis in x[2:]:
            graph.pin(axis, f"normalised over by {label(node)}")
    graph.write(node.output[0], x)
    for name in node.output[1:]:
        if name:  # statistics in training mode
            graph.write(name, [x[1]])


def groups_of_channels(graph: Labels, node: onnx.NodeProto) -> None:
    """GroupNormalization: whole groups go; scale and bias have an element per group before opset 21."""
    x, groups = [*graph.read(node.input[0])], int(number(node, "num_groups", 1))
    if not isinstance(x[1], str):
        rows = x[1].reshape(groups, -1)
        tied = graph.tie(rows)
        if groups == 1:
            graph.pin(x[1], f"normalised over by {label(node)}")
        for name in node.input[1:3]:
            axis = graph.read(name)[0]
            graph.join(tied if graph.shape(name)[0] == groups else x[1], axis)
    else:
        for name in node.input[1:3]:
            graph.pin(graph.read(name)[0], x[1])
    for axis in x[2:]:
        graph.pin(axis, f"normalised over by {label(node)}")
    graph.write(node.output[0], x)


def over_axes(graph: Labels, node: onnx.NodeProto, why: str = "") -> None:
    """LayerNormalization and what is like it: all axes from ``axis`` on are normalised over."""
    x = graph.read(node.input[0])
    first = axis_of(node, len(x), -1)
    reason = f"normalised over by {label(node)}{why}"
    for name in graph.node_inputs(node):
        own = graph.read(name)
        for axis, other in zip(own[::-1], x[::-1], strict=False):
            if not isinstance(axis, str) and not isinstance(other, str) and len(axis) == len(other):
                graph.join(axis, other)
        for axis in own[::-1][: len(x) - first]:
            graph.pin(axis, reason)
    _like_first(graph, node, x, first, reason)


def mean_square(graph: Labels, node: onnx.NodeProto) -> None:
    """RMSNormalization and SimplifiedLayerNormalization: the scale makes up for a mean over fewer."""
    x = graph.read(node.input[0])
    first = axis_of(node, len(x), -1)
    places = [axis for axis in range(first, len(x)) if not isinstance(x[axis], str)]
    why = _not_scaled(graph, node, 1) if places else "it has no units"
    for axis in places:
        why = why or silence(graph, node.input[0], axis)
    if why:
        over_axes(graph, node, f", and {why}" if places else "")
        return
    for own, other in zip(graph.read(node.input[1])[::-1], x[::-1], strict=False):
        graph.join(own, other)
    _like_first(graph, node, x, first, "a mean square")


def _not_scaled(graph: Labels, node: onnx.NodeProto, slot: int) -> str:
    """Return why the scale of a node cannot make up for a larger mean square; empty if it can."""
    at, index = graph.model.index.producer[node.output[0]], graph.model.index
    if any(name in index.uses or name in index.outputs for name in node.output[1:3] if name):
        return "its statistics are read"
    try:
        if not is_stored(graph.model, node.input[slot]):
            return f"its scale {node.input[slot]!r} is computed"
        scaled(graph.model, at, slot, 0.5)
    except MeanError as error:
        return str(error)
    return ""


def skip_norm(graph: Labels, node: onnx.NodeProto) -> None:
    """SkipLayerNormalization and its simplified form: a residual addition and a normalisation in one."""
    shape = graph.shape(node.input[0])
    reason = f"normalised over by {label(node)}"
    x: list[Axis] = [*graph.read(node.input[0])]
    for name in graph.node_inputs(node)[1:]:
        own = graph.read(name)
        if graph.shape(name) == shape:
            x = [graph.join(a, b) for a, b in zip(x, own, strict=True)]
        elif own:
            x[-1] = graph.join(x[-1], own[-1])
    graph.mark(x[-1], "sum")
    if node.op_type == "SkipLayerNormalization":
        graph.pin(x[-1], reason)
    elif not isinstance(x[-1], str):
        added = [name for name in (*node.input[:2], *node.input[3:4]) if name]
        why = _not_scaled(graph, node, 2)
        for name in added:
            why = why or silence(graph, name, len(graph.shape(name)) - 1)
        if why:
            graph.pin(x[-1], f"{reason}, and {why}")
    _like_first(graph, node, x, len(x) - 1, reason)


def softmax(graph: Labels, node: onnx.NodeProto) -> None:
    """Softmax, LogSoftmax and Hardmax: over one axis, before opset 13 over all from it on."""
    x = graph.read(node.input[0])
    old = graph.model.opset < 13
    first = axis_of(node, len(x), 1 if old else -1)
    for axis in x[first:] if old else x[first : first + 1]:
        graph.pin(axis, f"normalised over by {label(node)}")
    graph.write(node.output[0], x)


def along_axis(graph: Labels, node: onnx.NodeProto) -> None:
    """CumSum and LpNormalization: the axis they work along cannot shrink, others can."""
    x = graph.read(node.input[0])
    if node.op_type == "CumSum":
        numbers = graph.number(node.input[1])
        places = range(len(x)) if numbers is None else [int(numbers.ravel()[0]) % len(x)]
    else:
        places = [axis_of(node, len(x), -1)]
    for place in places:
        graph.pin(x[place], f"{label(node)} works along it")
    graph.write(node.output[0], x)


def lrn(graph: Labels, node: onnx.NodeProto) -> None:
    """LRN sums over neighbouring channels; MeanVarianceNormalization over some of the axes."""
    x = graph.read(node.input[0])
    for axis in x[1:]:
        graph.pin(axis, f"normalised over by {label(node)}")
    graph.write(node.output[0], x)


def _like_first(
    graph: Labels, node: onnx.NodeProto, x: list[Axis] | tuple[Axis, ...], first: int, why: str
) -> None:
    """Write outputs: of the shape of the first input, statistics (1 on the last axes), or a sum."""
    shape = graph.shape(node.input[0])
    for name in node.output:
        if name and graph.sizes.get(name) == shape:
            graph.write(name, x)
        elif name and name in graph.sizes:
            rest = len(graph.shape(name)) - first
            graph.write(name, [*x[:first], *[why] * rest])
