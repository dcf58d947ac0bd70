"""What the graph itself says about its inputs: channels, features, and how large a token id may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.model import Model, label, subgraphs

# Ops whose output holds the values of input 0, all of them.
_SAME = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Tile"}
# Ops whose output holds some of the values of that input.
_PART = {"Slice", "Split", "Concat"}
# Ops between the input and the first layer that keep the meaning of each axis.
_ELEMENTWISE = {"Cast", "Identity", "Add", "Sub", "Mul", "Div", "BatchNormalization", "Clip", "Pad", "Relu"}
_MAX_CLASSES = 1_000_000  # of a list of classes; longer ones are weights
_MAX_STEPS = 200  # values looked at before giving up; the first layer is near the input


@dataclass(frozen=True)
class IdRange:
    """Values that an integer input may hold: ``low <= id <= high``, because ``table`` has so many rows.

    ``exact`` is False when only a part of the input indexes that table.
    """

    low: int
    high: int
    table: str
    exact: bool = True


class _Scope:
    """Who reads a value, in the main graph or in a subgraph, and the constants visible there."""

    def __init__(self, graph: onnx.GraphProto, tensors: Mapping[str, onnx.TensorProto]) -> None:
        self.tensors = dict(tensors)
        self.tensors.update((t.name, t) for t in graph.initializer)
        self.producer: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self._nested: list[onnx.GraphProto] = []
        self._inner: list[_Scope] | None = None
        for node in graph.node:
            for name in node.output:
                self.producer[name] = node
            for slot, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, slot))
            if node.op_type == "Constant":
                self.tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
            self._nested.extend(subgraphs(node))

    def tensor(self, name: str) -> onnx.TensorProto | None:
        """Return the constant behind ``name``, also through casts and dequantization."""
        for _ in range(4):
            if name in self.tensors:
                return self.tensors[name]
            node = self.producer.get(name)
            if node is None or node.op_type not in ("Cast", "Identity", "DequantizeLinear"):
                return None
            name = node.input[0]
        return None

    @property
    def inner(self) -> list[_Scope]:
        """The subgraphs of the nodes."""
        if self._inner is None:
            self._inner = [_Scope(graph, self.tensors) for graph in self._nested]
        return self._inner


def id_range(model: Model, name: str) -> IdRange | None:
    """Return the range of integer input ``name``: the rows of the smallest table that it indexes.

    The input is followed through casts, reshapes, slices and added constants to ``Gather``, ``OneHot``,
    ``EmbedLayerNormalization`` and the like, also into subgraphs.
    """
    found = list(_id_uses(_Scope(model.graph, model.index.tensors), name))
    if not found:
        return None
    tightest = min(found, key=lambda r: (r.high, r.table))
    return IdRange(max(r.low for r in found), tightest.high, tightest.table, tightest.exact)


def _id_uses(scope: _Scope, name: str) -> Iterator[IdRange]:
    pending: list[tuple[str, int, bool]] = [(name, 0, True)]  # value, what was added to it, whether all of it
    seen: set[str] = set()
    while pending and len(seen) < _MAX_STEPS:
        value, offset, exact = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        for node, slot in scope.readers.get(value, ()):
            rows = _table_rows(scope, node, slot)
            if rows is not None:
                count, table = rows
                whole = exact and node.op_type != "Equal"  # which takes any number for "none of these"
                yield IdRange(max(0, -offset), count - 1 - offset, table, whole)
            elif node.op_type in _SAME and slot == 0:
                pending.append((node.output[0], offset, exact))
            elif node.op_type in _PART and (slot == 0 or node.op_type == "Concat"):
                pending.extend((o, offset, False) for o in node.output if o)
            elif node.op_type in ("Add", "Sub"):
                added = _added(scope, node, slot)
                if added is not None:
                    pending.append((node.output[0], offset + added[0], exact and added[1]))
        for inner in scope.inner:
            for found in _id_uses(inner, value):
                yield IdRange(found.low - offset, found.high - offset, found.table, exact and found.exact)


def _table_rows(scope: _Scope, node: onnx.NodeProto, slot: int) -> tuple[int, str] | None:
    """Return (rows, name) of the constant table that input ``slot`` of ``node`` indexes.

    A comparison with 0, 1, 2, ... is a OneHot written out.
    """
    if node.op_type == "Equal" and len(node.input) == 2:
        classes = scope.tensor(node.input[1 - slot])
        return (count, label(node)) if classes is not None and (count := _counted(classes)) else None
    attributes = {a.name: a for a in node.attribute}
    op = node.op_type
    if op == "OneHot" and slot == 0:
        depth = scope.tensor(node.input[1])
        return (int(numpy_helper.to_array(depth).reshape(-1)[0]), label(node)) if depth is not None else None
    axis = 0
    if op in ("Gather", "GatherElements", "GatherBlockQuantized") and slot == 1:
        key = "gather_axis" if op == "GatherBlockQuantized" else "axis"
        axis, position = (int(attributes[key].i) if key in attributes else 0), 0
    elif op == "EmbedLayerNormalization" and slot in (0, 1, 8):
        position = {0: 2, 1: 4, 8: 3}[slot]
    else:
        return None
    table = scope.tensor(node.input[position]) if position < len(node.input) else None
    if table is None or not -len(table.dims) <= axis < len(table.dims):
        return None
    return int(table.dims[axis]), node.input[position]


def _counted(tensor: onnx.TensorProto) -> int:
    """Return n for the numbers 0 to n - 1 in order, 0 for others."""
    size = int(np.prod(tensor.dims))
    if not 2 <= size <= _MAX_CLASSES:
        return 0
    return size if np.array_equal(numpy_helper.to_array(tensor).reshape(-1), np.arange(size)) else 0


def _added(scope: _Scope, node: onnx.NodeProto, slot: int) -> tuple[int, bool] | None:
    """Return (largest constant that ``node`` adds to its input, whether it adds the same everywhere)."""
    if len(node.input) != 2 or (node.op_type == "Sub" and slot == 1):
        return None
    other = scope.tensor(node.input[1 - slot])
    if other is None or other.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return None
    values = numpy_helper.to_array(other)
    if not values.size:
        return None
    sign = -1 if node.op_type == "Sub" else 1
    return int((values.astype(np.int64) * sign).max()), values.size == 1


def channels(model: Model, name: str) -> tuple[int, int] | None:
    """Return (axis from the end, channels) that the first convolution wants of image input ``name``."""
    for op, weight, last in _first_layers(model, name):
        if op == "Conv" and len(weight.dims) >= 3:
            return (-1 if last else 1 - len(weight.dims)), int(weight.dims[1])
    return None


def features(model: Model, name: str) -> int | None:
    """Return the size of the last axis of input ``name`` that the first MatMul, Gemm or RNN wants."""
    for op, weight, _ in _first_layers(model, name):
        if op == "MatMul" and len(weight.dims) >= 2:
            return int(weight.dims[-2])
        if op == "GemmT" or op in ("LSTM", "GRU", "RNN"):
            return int(weight.dims[-1])
        if op == "Gemm":
            return int(weight.dims[0])
    return None


def _first_layers(model: Model, name: str) -> Iterator[tuple[str, onnx.TensorProto, bool]]:
    """Yield (op, weight, whether the input was NHWC) of the layers reached through elementwise ops."""
    scope = _Scope(model.graph, model.index.tensors)
    pending = [(name, False)]
    seen: set[str] = set()
    while pending and len(seen) < _MAX_STEPS:
        value, last = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        for node, slot in scope.readers.get(value, ()):
            if (
                slot == 0
                and len(node.input) > 1
                and node.op_type in ("Conv", "MatMul", "Gemm", "LSTM", "GRU", "RNN")
            ):
                weight = scope.tensor(node.input[1])
                if weight is not None:
                    attributes = {a.name: a.i for a in node.attribute}
                    op = "GemmT" if node.op_type == "Gemm" and attributes.get("transB") else node.op_type
                    if op == "Conv":
                        groups = attributes.get("group", 1) or 1
                        scaled = onnx.TensorProto(
                            dims=[weight.dims[0], weight.dims[1] * groups, *weight.dims[2:]]
                        )
                        yield op, scaled, last
                    else:
                        yield op, weight, last
            elif node.op_type in _ELEMENTWISE:
                pending.append((node.output[0], last))
            elif node.op_type == "Transpose":
                order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
                pending.append((node.output[0], order[1:2] == [len(order) - 1]))
