"""Walks along the values of a graph: from scores back to weights, from the context on to the residual."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from onnxprune.calibration.cut import Cutter
from onnxprune.model import Model

# Ops that move or cast what is in their first input.
MOVES = frozenset((
    "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "CastLike", "Dropout",
    "Slice", "Split", "Gather", "Expand", "Tile", "Pad", "QuantizeLinear", "DequantizeLinear",
))  # fmt: skip
# Ops that combine their inputs place by place.
MIXES = frozenset(("Add", "Sub", "Mul", "Div", "Where", "Concat", "Neg", "Clip", "Min", "Max", "Sum"))
# Ops that normalise or turn queries and keys.
NORMS = frozenset((
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "RotaryEmbedding",
    "BatchNormalization", "LpNormalization", "InstanceNormalization",
))  # fmt: skip
PRODUCTS = frozenset(("MatMul", "Gemm", "Einsum", "FusedMatMul", "Conv"))
_REACH = 64  # nodes looked at before giving up: projections are near


@dataclass(frozen=True)
class Weighted:
    """A product with a weight: its position, the weight's name, the slot of the activation."""

    node: int
    weight: str
    slot: int


class Walker:
    """Answers where values come from and go to; built once per model.

    Attributes:
        model: the model.
        constant: values that depend on weights only.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.constant = Cutter(model).constant

    def producer(self, value: str) -> onnx.NodeProto | None:
        """Return the node that makes ``value``; None for inputs and weights."""
        position = self.model.index.producer.get(value)
        return None if position is None else self.model.graph.node[position]

    def readers(self, value: str) -> Iterator[tuple[int, onnx.NodeProto, int]]:
        """Yield (position, node, slot) of each node of the main graph that reads ``value``."""
        for use in self.model.index.uses.get(value, ()):
            if use.slot >= 0:
                yield use.index, self.model.graph.node[use.index], use.slot

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs of ``node`` that are not constant."""
        return [name for name in node.input if name and name not in self.constant]

    def weight(self, value: str) -> str | None:
        """Return the tensor behind a constant value, also through casts and transposes."""
        for _ in range(4):
            if value in self.model.index.tensors:
                return value
            node = self.producer(value)
            if node is None or node.op_type not in ("Identity", "Transpose", "Cast", "DequantizeLinear"):
                return None
            value = node.input[0]
        return None

    def weighted(self, position: int) -> Weighted | None:
        """Return what node ``position`` multiplies, when it is a product of an activation and a weight."""
        node = self.model.graph.node[position]
        if node.op_type not in PRODUCTS or len(node.input) < 2:
            return None
        constant = [name in self.constant for name in node.input[:2]]
        if sum(constant) != 1:
            return None
        slot = constant.index(False)
        name = self.weight(node.input[1 - slot])
        return None if name is None else Weighted(position, name, slot)

    def back(self, value: str, through: frozenset[str]) -> Iterator[tuple[str, onnx.NodeProto]]:
        """Yield (value, its node) from ``value`` backwards, nearest first; goes on through some ops only."""
        pending, seen = deque([value]), {value}
        while pending and len(seen) <= _REACH:
            current = pending.popleft()
            node = self.producer(current)
            if node is None or current in self.constant:
                continue
            yield current, node
            if node.op_type not in through:
                continue
            names = self.activations(node) if node.op_type in MIXES else self.activations(node)[:1]
            if node.op_type in MOVES | NORMS and node.input[0] in self.constant:
                continue  # a table
            for name in names:
                if name not in seen:
                    seen.add(name)
                    pending.append(name)

    def forward(self, value: str, through: frozenset[str]) -> Iterator[tuple[str, int, onnx.NodeProto, int]]:
        """Yield (value, position, node, slot) of the readers from ``value`` on, nearest first."""
        pending, seen = deque([value]), {value}
        while pending and len(seen) <= _REACH:
            current = pending.popleft()
            for position, node, slot in self.readers(current):
                yield current, position, node, slot
                if node.op_type in through and (slot == 0 or node.op_type in MIXES):
                    for name in node.output:
                        if name and name not in seen:
                            seen.add(name)
                            pending.append(name)

    def projection(self, value: str) -> str | None:
        """Return the weight of the nearest product that ``value`` comes from; None when there is none."""
        for _, node in self.back(value, MOVES | MIXES | NORMS):
            if node.op_type in PRODUCTS:
                found = self.weighted(self.model.index.producer[node.output[0]])
                if found is not None:
                    return found.weight
        return None

    def output_projection(self, context: str) -> Weighted | None:
        """Return the first product with a weight that the context goes into."""
        for _, position, node, slot in self.forward(context, MOVES | MIXES | NORMS):
            found = self.weighted(position) if node.op_type in PRODUCTS else None
            if found is not None and found.slot == slot:
                return found
        return None

    def addition(self, value: str) -> tuple[str, str]:
        """Return (value, residual) where what comes from ``value`` meets another activation; else "", ""."""
        for current, _, node, slot in self.forward(value, MOVES | MIXES):
            both = self.activations(node)
            if node.op_type == "SkipLayerNormalization" and slot < 2:
                return current, node.input[1 - slot]
            if node.op_type == "Add" and len(both) == 2 and both[0] != both[1]:
                return current, both[1 - both.index(current)]
        return "", ""
