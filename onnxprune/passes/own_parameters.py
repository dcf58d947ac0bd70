"""Give each layer parameters of its own, so that one can shrink without the other.

Matches: what :mod:`onnxprune.passes.own_constants` and :mod:`onnxprune.passes.own_masks` do; vectors that
several nodes read in any place (exporters keep one of several equal biases, scales and zeros); initial states
of LSTM, GRU and RNN, stored or made from constants and shapes, that several layers share.
Changes: every reader but the first gets a copy of the vector, or of the nodes that make the state.
Guarantees: the same values everywhere; matrices stay shared, they are tied weights.
"""

from __future__ import annotations

import onnx

from onnxprune.model import Model
from onnxprune.passes.own_constants import MAX_BIAS, own_constants
from onnxprune.passes.own_masks import own_masks
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.edit import Names, is_overridable

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
# What a state is made by; the input that holds it comes first, the others are shapes and bounds.
_MAKERS = frozenset(
    ("Expand", "ConstantOfShape", "Slice", "Split", "Unsqueeze", "Squeeze", "Transpose", "Tile")
)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def own_parameters(model: Model) -> int:
    """Change ``model`` in place; return the number of inputs that read something else now."""
    changed = own_constants(model) + own_masks(model)
    names = Names(model)
    changed += _own_vectors(model, names)
    states = _own_states(model, names)
    model.reindex()
    drop_unread(model, states)
    return changed + len(states)


def _own_vectors(model: Model, names: Names) -> int:
    seen: set[str] = set()
    changed = 0
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            tensor = model.index.tensors.get(name)
            if tensor is None or not _is_vector(tensor) or is_overridable(model, name):
                continue
            if name in seen:
                node.input[slot] = _copy(model, names, tensor, node, slot)
                changed += 1
            seen.add(name)
    model.reindex()
    return changed


def _is_vector(tensor: onnx.TensorProto) -> bool:
    long = [dim for dim in tensor.dims if dim != 1]
    return tensor.data_type in _FLOATS and len(long) == 1 and long[0] <= MAX_BIAS


def _copy(model: Model, names: Names, tensor: onnx.TensorProto, node: onnx.NodeProto, slot: int) -> str:
    own = model.graph.initializer.add()
    own.CopyFrom(tensor)
    own.name = names.fresh(f"{node.output[0]}_{slot}")
    return str(own.name)


def _own_states(model: Model, names: Names) -> list[str]:
    """Return the states that are read less often now."""
    left: list[str] = []
    taken: set[str] = set()  # stored tensors and values that some layer has for itself
    fresh: list[tuple[int, list[onnx.NodeProto]]] = []
    for position, node in enumerate(model.graph.node):
        for slot in _STATES.get(node.op_type, ()):
            name = node.input[slot] if slot < len(node.input) else ""
            chain = _chain(model, name)
            if chain is None:
                continue
            roots = {name, *(item for maker in chain for item in maker.output)}
            roots.update(maker.input[0] for maker in chain if maker.op_type != "ConstantOfShape")
            if roots & taken:
                left.append(name)
                makers, node.input[slot] = _clone(model, names, chain, name, node, slot)
                fresh.append((position, makers))
            taken |= roots
    for position, makers in reversed(fresh):  # from the end, so that positions stay valid
        for maker in reversed(makers):
            model.graph.node.insert(position, maker)
    return left


def _chain(model: Model, name: str) -> list[onnx.NodeProto] | None:
    """Return the nodes that make a state from a stored tensor or a shape, the first one first."""
    chain: list[onnx.NodeProto] = []
    while name and name not in model.index.tensors:
        position = model.index.producer.get(name)
        node = model.graph.node[position] if position is not None else None
        if node is None or node.op_type not in _MAKERS or name not in node.output:
            return None
        chain.insert(0, node)
        if node.op_type == "ConstantOfShape":
            return chain
        name = node.input[0]
    return chain if name and not is_overridable(model, name) else None


def _clone(
    model: Model, names: Names, chain: list[onnx.NodeProto], name: str, reader: onnx.NodeProto, slot: int
) -> tuple[list[onnx.NodeProto], str]:
    """Return copies of the nodes, and what stands for ``name`` behind them."""
    renamed: dict[str, str] = {}
    root = chain[0].input[0] if chain else name
    if not chain or chain[0].op_type != "ConstantOfShape":
        renamed[root] = _copy(model, names, model.index.tensors[root], reader, slot)
    fresh = []
    for maker in chain:
        own = onnx.NodeProto()
        own.CopyFrom(maker)
        if own.input[0] in renamed:
            own.input[0] = renamed[own.input[0]]
        for place, output in enumerate(maker.output):
            renamed[output] = own.output[place] = names.fresh(output)
        own.name = own.output[0]
        fresh.append(own)
    return fresh, renamed[name]
