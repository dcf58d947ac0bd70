"""Compute the weights of recurrent nodes once, where the graph computes them from constants.

Matches: W, R and B of LSTM, GRU and RNN that come out of nodes over constants only: PyTorch's exporter puts
the gates into ONNX's order with Slice and Concat. Weights that callers may replace (initializers that are
inputs too) are left as they are, and so are nodes that the globs leave alone.
Changes: each becomes an initializer, called like the node: ``NODE.W``, ``NODE.R``, ``NODE.B``. What nothing
reads any more goes.
Guarantees: ONNX Runtime, which folds the same nodes at load, computes with the same weights bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import numpy_helper

from onnxprune.layers.find import why_left_alone
from onnxprune.layers.layer import FLOATS
from onnxprune.layers.recurrent import is_recurrent
from onnxprune.model import Model, label
from onnxprune.passes.constants import evaluate, sources
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.edit import Names, is_overridable
from onnxprune.storage.form import onnx_type

_SLOTS = {1: "W", 2: "R", 3: "B"}


def needs_fold_recurrent(model: Model) -> bool:
    """Whether :func:`fold_recurrent` may change anything."""
    return any(_computed(model, node) for node in model.graph.node if is_recurrent(node))


def fold_recurrent(model: Model, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> int:
    """Change ``model`` in place; return the number of inputs that read something else now.

    Args:
        model: our own copy.
        include: globs over the new names of the weights and over node names; empty means all.
        exclude: globs over the same.
    """
    wanted = [
        (node, slot)
        for node in model.graph.node
        if is_recurrent(node)
        for slot in _computed(model, node)
        if not why_left_alone((_name(node, slot), label(node)), include, exclude)
    ]
    found = evaluate(model, [node.input[slot] for node, slot in wanted])
    names, made, left = Names(model), dict[str, str](), set[str]()
    changed = 0
    for node, slot in wanted:
        value = node.input[slot]
        if value not in found or _fixed(model, value) or onnx_type(found[value].dtype) not in FLOATS:
            continue
        if value not in made:  # of two nodes with one weight it stays one
            made[value] = names.fresh(_name(node, slot))
            model.graph.initializer.append(numpy_helper.from_array(found[value], made[value]))
        node.input[slot] = made[value]
        left.add(value)
        changed += 1
    model.reindex()
    drop_unread(model, left)
    return changed


def _computed(model: Model, node: onnx.NodeProto) -> list[int]:
    """Return the slots of the weights that a node computes, or that are no weights at all."""
    return [
        slot
        for slot in _SLOTS
        if slot < len(node.input)
        and node.input[slot] in model.index.producer.keys() - model.index.tensors.keys()
    ]


def _name(node: onnx.NodeProto, slot: int) -> str:
    return f"{label(node)}.{_SLOTS[slot]}"


def _fixed(model: Model, value: str) -> bool:
    """Whether something that a value is made of may be replaced at run time."""
    return any(is_overridable(model, name) for name in sources(model, value))
