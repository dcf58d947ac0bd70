"""Attention operators: heads are the units, with shared keys and values a group of queries and its key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.attributes import ints, number
from onnxprune.model import label
from onnxprune.structure.groups import Axis
from onnxprune.structure.labels import Labels, RuleError


def heads_of(graph: Labels, axis: Axis, size: int, heads: int) -> NDArray[np.int64]:
    """Return one label for each head of an axis that holds heads one after the other, (heads,).

    Raises:
        RuleError: when the axis does not divide.
    """
    if not heads or size % heads:
        raise RuleError("features that do not divide into its heads")
    return graph.tie(graph.as_labels(axis, size).reshape(heads, -1))


def share(graph: Labels, query: NDArray[np.int64], key: NDArray[np.int64]) -> None:
    """Join each head of keys with the heads of queries that read it; mark them."""
    if len(query) % len(key):
        raise RuleError("heads that do not divide")
    graph.join(query, np.repeat(key, len(query) // len(key)))
    graph.mark(query, "head")


def attention(graph: Labels, node: onnx.NodeProto) -> None:
    """ONNX ``Attention`` with (batch, heads, length, size) or (batch, length, heads * size)."""
    shapes, axes = (
        [graph.shape(name) for name in node.input[:3]],
        [graph.read(name) for name in node.input[:3]],
    )
    flat = len(shapes[0]) == 3
    counts = [int(number(node, f"{k}_num_heads", 0)) for k in ("q", "kv", "kv")]
    heads: list[NDArray[np.int64]] = []
    for shape, own, count in zip(shapes, axes, counts, strict=True):
        if flat:
            heads.append(heads_of(graph, own[2], shape[2], count))
        else:
            heads.append(graph.as_labels(own[1], shape[1]))
            graph.pin(own[3], f"summed over by {label(node)}")
    share(graph, heads[0], heads[1])
    share(graph, heads[0], heads[2])
    for slot, part in ((3, heads[0]), (4, heads[1]), (5, heads[2])):
        if slot < len(node.input) and node.input[slot]:
            _four(graph, node.input[slot], part)
    batch, length = axes[0][0], axes[0][1 if flat else 2]
    context = graph.shape(node.output[0])
    if flat:
        graph.write(node.output[0], [batch, length, np.repeat(heads[0], context[2] // len(heads[0]))])
    else:
        graph.write(node.output[0], [batch, heads[0], length, "features of a head"])
    for name, part in zip(node.output[1:], (heads[1], heads[2], heads[0]), strict=False):
        _result(graph, name, part)


def _four(graph: Labels, name: str, heads: NDArray[np.int64]) -> None:
    """Join the heads of a mask, a bias or past states (batch, heads or 1, length, size); pin the rest."""
    shape, axes = graph.shape(name), graph.read(name)
    place = len(shape) - 3
    for at, axis in enumerate(axes):
        if at == place and shape[at] == len(heads):
            graph.join(axis, heads)
        else:
            graph.pin(axis, "positions of attention")


def _result(graph: Labels, name: str, heads: NDArray[np.int64]) -> None:
    if name:
        graph.write(name, ["samples", heads, "positions of attention", "features of a head"])


def multi_head(graph: Labels, node: onnx.NodeProto) -> None:
    """MultiHeadAttention of com.microsoft with separate (batch, length, heads * size) inputs."""
    count = int(number(node, "num_heads", 0))
    names = [*node.input, *[""] * 8][:8]
    if not all(names[:3]) or any(len(graph.shape(name)) != 3 for name in names[:3]):
        raise RuleError("packed queries, keys or values")
    heads = [heads_of(graph, graph.read(n)[2], graph.shape(n)[2], count) for n in names[:3]]
    share(graph, heads[0], heads[1])
    share(graph, heads[0], heads[2])
    if names[3]:
        _packed(graph, names[3], [graph.shape(n)[2] for n in names[:3]], heads)
    if names[4]:
        _pin_all(graph, names[4], "mask of attention")
    for slot in (5, 6, 7):
        if names[slot]:
            _four(graph, names[slot], heads[0])
    x = graph.read(names[0])
    size = graph.shape(names[2])[2] // count
    graph.write(node.output[0], [x[0], x[1], np.repeat(heads[0], size)])
    for name in node.output[1:]:
        _result(graph, name, heads[0])


def grouped_query(graph: Labels, node: onnx.NodeProto) -> None:
    """GroupQueryAttention of com.microsoft; with all three in one input they follow each other."""
    count, shared = int(number(node, "num_heads", 0)), int(number(node, "kv_num_heads", 0))
    names = [*node.input, *[""] * 12]
    if len(node.input) > 9 and any(names[9:]):
        raise RuleError("position ids, biases or sinks")
    width, q = graph.shape(names[0])[2], graph.read(names[0])
    if names[1]:
        parts = [heads_of(graph, graph.read(names[i])[2], graph.shape(names[i])[2], shared) for i in (1, 2)]
        queries, size = heads_of(graph, q[2], width, count), width // count
    else:
        size = width // (count + 2 * shared)
        whole = heads_of(graph, q[2], width, count + 2 * shared)
        queries, *parts = np.split(whole, [count, count + shared])
    for part in parts:
        share(graph, queries, part)
    for slot, part in zip((3, 4), parts, strict=True):
        if names[slot]:
            _four(graph, names[slot], part)
    for name in names[5:9]:
        if name:
            _pin_all(graph, name, "lengths and angles of attention")
    graph.write(node.output[0], [q[0], q[1], np.repeat(queries, size)])
    for name, part in zip(node.output[1:3], parts, strict=False):
        _result(graph, name, part)


def fused_projection(graph: Labels, node: onnx.NodeProto) -> None:
    """``Attention`` of com.microsoft: the operator holds the projections of queries, keys and values."""
    names = [*node.input, *[""] * 7][:7]
    x, weight = graph.read(names[0]), graph.read(names[1])
    count, width = int(number(node, "num_heads", 0)), graph.shape(names[1])[1]
    sizes = ints(node, "qkv_hidden_sizes", (width // 3,) * 3)
    if names[4]:
        raise RuleError("past states")
    graph.join(x[2], weight[0])
    graph.mark(weight[0], "consumer")
    graph.mark(weight[1], "producer")
    bounds = np.cumsum(sizes)[:2]
    parts = np.split(graph.as_labels(weight[1], width), bounds)
    heads = [heads_of(graph, part, len(part), count) for part in parts]
    share(graph, heads[0], heads[1])
    share(graph, heads[0], heads[2])
    if names[2]:
        _packed(graph, names[2], sizes, heads)
    if names[3]:
        _pin_all(graph, names[3], "mask of attention")
    if names[5]:
        _four(graph, names[5], heads[0])
    graph.write(node.output[0], [x[0], x[1], np.repeat(heads[0], sizes[2] // count)])
    if len(node.output) > 1 and node.output[1]:
        raise RuleError("present states")


def _packed(graph: Labels, name: str, sizes: Sequence[int], heads: Sequence[NDArray[np.int64]]) -> None:
    """Join a vector that holds the biases of queries, keys and values."""
    wanted = [np.repeat(part, size // len(part)) for part, size in zip(heads, sizes, strict=True)]
    graph.join(np.concatenate(wanted), graph.read(name)[0])


def _pin_all(graph: Labels, name: str, reason: str) -> None:
    for axis in graph.read(name):
        graph.pin(axis, reason)


def rotary(graph: Labels, node: onnx.NodeProto) -> None:
    """RotaryEmbedding, ONNX and com.microsoft: features turn inside a head, heads stay apart."""
    x, shape = [*graph.read(node.input[0])], graph.shape(node.input[0])
    for name in node.input[1:]:
        if name:
            _pin_all(graph, name, "angles of a rotary embedding")
    if len(shape) == 4:
        graph.pin(x[3], f"turned by {label(node)}")
    elif not isinstance(x[2], str):
        count = int(number(node, "num_heads", 0))
        heads = heads_of(graph, x[2], shape[2], count)
        x[2] = np.repeat(heads, shape[2] // count)
        graph.mark(heads, "head")
    graph.write(node.output[0], x)
