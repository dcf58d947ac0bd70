"""LSTM, GRU and RNN: a hidden unit is a row of every gate, a column of the recurrence, an initial state."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.attributes import attribute
from onnxprune.layers.recurrent import GATES
from onnxprune.model import label
from onnxprune.structure.groups import Axis
from onnxprune.structure.labels import Labels, RuleError


def recurrent(graph: Labels, node: onnx.NodeProto) -> None:
    """Join gate blocks of W, R, B and P, the states, and the outputs; directions share the hidden size."""
    if attribute(node, "layout", 0):
        raise RuleError("batch first inside the operator")
    gates = GATES[node.op_type]
    x, w, r = (graph.read(name) for name in node.input[:3])
    hidden = graph.shape(node.input[2])[2]
    units = graph.as_labels(r[2], hidden)
    graph.join(x[2], w[2])
    graph.mark(w[2], "consumer")
    graph.mark(r[2], "consumer")
    for rows in (w[1], r[1]):
        graph.join(np.tile(units, gates), rows)
        graph.mark(rows, "producer")
    graph.mark(units, "hidden")
    places = {3: (1, 2 * gates), 5: (2, 1), 6: (2, 1), 7: (1, 3)}  # slot -> (axis, blocks)
    for slot, (axis, blocks) in places.items():
        if slot < len(node.input) and node.input[slot]:
            graph.join(np.tile(units, blocks), graph.read(node.input[slot])[axis])
    if len(node.input) > 4 and node.input[4]:
        for lengths in graph.read(node.input[4]):
            graph.pin(lengths, f"lengths of sequences of {label(node)}")
    outer: list[Axis] = [f"directions of {label(node)}", x[1]]
    for place, name in enumerate(node.output):
        if name:
            graph.write(name, [x[0], *outer, units] if place == 0 else [*outer, units])
