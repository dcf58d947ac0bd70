"""Put constants in the place of sizes of inputs that the model declares as fixed.

Matches: ``Gather`` nodes that take declared sizes from the ``Shape`` of a graph input.
Changes: a constant holds the size, the nodes go. Exporters decide with such nodes what an ``If`` runs, like
PyTorch's for a cell that takes its states in one tensor or in none.
Guarantees: the same outputs; ONNX Runtime refuses inputs of other sizes than those that are declared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.attributes import number
from onnxprune.model import Model
from onnxprune.passes.constants import evaluate, sources
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.edit import is_overridable


def fix_sizes(model: Model) -> int:
    """Change ``model`` in place; return how many nodes became constants."""
    known: dict[int, NDArray[np.int64]] = {}
    for position, node in enumerate(model.graph.node):
        if node.op_type != "Gather" or number(node, "axis", 0) or node.output[0] in model.index.outputs:
            continue
        dims = _declared(model, node.input[0])
        index = node.input[1]
        fixed = any(dims) and not any(is_overridable(model, name) for name in sources(model, index))
        picked = evaluate(model, [index]).get(index) if fixed else None
        if picked is None or not all(-len(dims) <= i < len(dims) and dims[i] for i in picked.ravel()):
            continue
        known[position] = np.array([dims[i] for i in picked.ravel()], np.int64).reshape(picked.shape)
    unread = []
    for position in sorted(known, reverse=True):
        node = model.graph.node.pop(position)
        unread += node.input
        model.graph.initializer.append(numpy_helper.from_array(known[position], node.output[0]))
    if known:
        model.reindex()
        drop_unread(model, unread)
    return len(known)


def _declared(model: Model, value: str) -> list[int]:
    """Return the sizes of the input whose shape ``value`` is, 0 where free; none for other values."""
    position = model.index.producer.get(value)
    node = model.graph.node[position] if position is not None else None
    if node is None or node.op_type != "Shape" or node.attribute or node.input[0] not in model.index.inputs:
        return []
    kind = model.index.inputs[node.input[0]].type.tensor_type
    return [max(dim.dim_value, 0) for dim in kind.shape.dim]
