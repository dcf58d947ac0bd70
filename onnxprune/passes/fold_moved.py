"""Store weights the way that their nodes read them, where the graph turns or reshapes them first.

Matches: weights of MatMul, Gemm, Conv and ConvTranspose behind ``Transpose``, ``Reshape``, ``Squeeze``,
``Unsqueeze``, ``Flatten`` and ``Identity`` (exporters that fold no large constants leave
``MatMul(x, Transpose(W))``). All readers of the stored tensor must want it in the same form; a table that is
also the last layer's weight, turned, stays as it is: it would be stored twice. So do tensors that callers may
replace.
Changes: the tensor keeps its name and gets its new shape, the nodes that moved its elements go.
Guarantees: ONNX Runtime, which folds the same nodes at load, computes with the same weights bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.layers.find import is_matrix, why_left_alone
from onnxprune.layers.layer import FLOATS
from onnxprune.model import Model, label
from onnxprune.passes.constants import evaluate
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.edit import drop_value_info, fill, is_overridable

MOVES = frozenset(("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
_SLOTS = {"MatMul": (0, 1), "Gemm": (1,), "Conv": (1,), "ConvTranspose": (1,)}
_STANDARD = ("", "ai.onnx")


def needs_fold_moved(model: Model) -> bool:
    """Whether :func:`fold_moved` may change anything."""
    return any(_ends(model, name) for name in _candidates(model))


def fold_moved(model: Model, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> int:
    """Change ``model`` in place; return the number of weights that are stored in another form now.

    Args:
        model: our own copy.
        include: globs over the names of the weights and of the nodes that use them; empty means all.
        exclude: globs over the same.
    """
    wanted = {}
    for name in _candidates(model):
        ends = _ends(model, name)
        readers = [label(model.graph.node[use.index]) for end in ends for use in model.index.uses[end]]
        if ends and not why_left_alone((name, *readers), include, exclude):
            wanted[name] = ends
    changed, left = 0, set[str]()
    for name, ends in wanted.items():  # one after the other: all of them may be larger than a model can be
        found = list(evaluate(model, ends).values())
        if len(found) < len(ends) or not all(np.array_equal(found[0], other) for other in found[1:]):
            continue
        for end in ends:
            for use in model.index.uses[end]:
                model.graph.node[use.index].input[use.slot] = name
        fill(model.index.tensors[name], numpy_helper.from_array(np.ascontiguousarray(found[0])))
        drop_value_info(model.graph, {name})
        left.update(ends)
        changed += 1
    model.reindex()
    drop_unread(model, left)
    return changed


def _candidates(model: Model) -> list[str]:
    """Return the stored float matrices whose readers all move their elements."""
    return [
        name
        for name, tensor in model.index.tensors.items()
        if tensor.data_type in FLOATS
        and is_matrix(tensor)
        and not is_overridable(model, name)
        and all(
            use.slot == 0 and _moves(model.graph.node[use.index]) for use in model.index.uses.get(name, ())
        )
    ]


def _moves(node: onnx.NodeProto) -> bool:
    return node.op_type in MOVES and node.domain in _STANDARD


def _ends(model: Model, name: str) -> tuple[str, ...]:
    """Return the values that nodes read as weights and that are ``name`` moved; none if others read some."""
    ends: list[str] = []
    waiting = [name]
    while waiting:
        value = waiting.pop()
        uses = model.index.uses.get(value, [])
        if not uses or value in model.index.outputs:
            return ()
        nodes = [model.graph.node[use.index] for use in uses]
        if all(use.slot == 0 and _moves(node) for use, node in zip(uses, nodes, strict=True)):
            waiting.extend(node.output[0] for node in nodes)
        elif all(_is_weight(node, use.slot) for use, node in zip(uses, nodes, strict=True)):
            ends.append(value)
        else:
            return ()
    return tuple(ends) if name not in ends else ()


def _is_weight(node: onnx.NodeProto, slot: int) -> bool:
    return node.domain in _STANDARD and slot in _SLOTS.get(node.op_type, ())
