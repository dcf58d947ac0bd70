"""Layers whose outputs are the model's own: classifiers."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.layers.layer import Layer
from onnxprune.model import Model

_PAIRS = {"Add", "Sub", "Mul", "Div"}
_KEEPS_FEATURES = _PAIRS | {
    *("BatchNormalization", "Cast", "Flatten", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax"),
    *("Squeeze", "Tanh", "Transpose", "Unsqueeze"),
}


def heads(model: Model, layers: Sequence[Layer]) -> frozenset[str]:
    """Return the weights whose output features are features of a graph output: a classifier's classes."""
    by_node: dict[int, list[str]] = {}
    for layer in layers:
        for site in layer.sites:
            by_node.setdefault(site.node, []).append(layer.name)
    nodes, found = model.graph.node, set()
    for output in model.index.outputs:
        position = model.index.producer.get(output)
        while position is not None and position not in by_node and nodes[position].op_type in _KEEPS_FEATURES:
            moving = [name for name in nodes[position].input if name and name not in model.index.tensors]
            if not moving or (nodes[position].op_type in _PAIRS and len(moving) > 1):
                break
            position = model.index.producer.get(moving[0])
        if position is not None and position in by_node:
            found.update(by_node[position])
    return frozenset(found)
