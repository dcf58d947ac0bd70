"""Give each attention a mask of its own, so that one can lose heads without the others.

Matches: values that an ``Expand`` along some stored length makes, and nodes behind it that only move axes,
where several nodes read them. PyTorch's exporter writes the padding mask of ``nn.TransformerEncoder`` like
this: it is repeated for each head once, and every layer adds it to its scores.
Changes: every reader but the first gets copies of the ``Expand`` and of what follows it.
Guarantees: the same values everywhere. Of copies that are still equal ONNX Runtime makes one when it loads.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.model import Model
from onnxprune.storage.edit import Names

_MOVES = frozenset(("Reshape", "Unsqueeze", "Squeeze", "Transpose", "Cast", "Identity"))
_ASIDE = _MOVES | {"Expand", "Shape", "Size"}  # readers that are part of a chain, or want no values


def own_masks(model: Model) -> int:
    """Change ``model`` in place; return the number of inputs that read something else now."""
    names = Names(model)
    taken: set[str] = set()
    fresh: list[tuple[int, list[onnx.NodeProto]]] = []
    for position, node in enumerate(model.graph.node):
        if node.op_type in _ASIDE:
            continue
        for slot, name in enumerate(node.input):
            chain = _chain(model, name)
            made = {maker.output[0] for maker in chain}
            if made & taken:
                copies = _copies(names, chain)
                node.input[slot] = copies[-1].output[0]
                fresh.append((position, copies))
            taken |= made
    for position, copies in reversed(fresh):  # from the end, so that positions stay valid
        for copy in reversed(copies):
            model.graph.node.insert(position, copy)
    model.reindex()
    return len(fresh)


def _chain(model: Model, name: str) -> list[onnx.NodeProto]:
    """Return the nodes that make ``name``, an ``Expand`` first; none where it is not made like this."""
    chain: list[onnx.NodeProto] = []
    while (position := model.index.producer.get(name)) is not None:
        node = model.graph.node[position]
        chain.insert(0, node)
        if node.op_type == "Expand":
            return chain if _repeats(model, node.input[1]) else []
        if node.op_type not in _MOVES:
            return []
        name = node.input[0]
    return []


def _repeats(model: Model, shape: str) -> bool:
    """Whether a shape may have a stored length above 1: heads, not a batch or tokens."""
    tensor = model.index.tensors.get(shape)
    if tensor is not None:
        return bool((model.array(shape).astype(np.int64) > 1).any())
    position = model.index.producer.get(shape)
    node = model.graph.node[position] if position is not None else None
    return node is not None and node.op_type == "Concat" and any(_repeats(model, part) for part in node.input)


def _copies(names: Names, chain: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    renamed: dict[str, str] = {}
    copies = []
    for node in chain:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0] = renamed.get(node.input[0], node.input[0])
        renamed[node.output[0]] = copy.output[0] = names.fresh(node.output[0])
        copy.name = ""  # nodes of one name are refused
        copies.append(copy)
    return copies
