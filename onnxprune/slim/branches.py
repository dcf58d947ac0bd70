"""Residual branches: blocks that can go as a whole, so that only what they are added to is left.

Matches: an ``Add`` of two activations of equal shape whatever the inputs' sizes, or the sum in
SkipLayerNormalization and SkipSimplifiedLayerNormalization of com.microsoft. One of the two (the branch) is
computed from the other (the skip) by nodes that serve nothing else, with a weight among them; or the skip is
a projection: made from what the branch starts at, with one weight matrix at most and fewer than the branch.
Changes when a branch goes: who read the sum reads the skip, and the branch's nodes and weights are dropped. A
gate in front of the sum stands for that while shapes and graph must stay: 1 lets the branch through, 0 is the
model without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.calibration.cut import Cutter
from onnxprune.layers.find import is_matrix
from onnxprune.model import Model, label
from onnxprune.passes.shapes import infer
from onnxprune.passes.unread import drop_unread
from onnxprune.slim.fused import is_fused, norm_alone
from onnxprune.storage.edit import Names, drop_value_info

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Branch:
    """A residual branch.

    Attributes:
        name: of the node that adds it.
        output: the first value that this node makes, which names the node.
        skip: what stays.
        value: what the branch adds.
        nodes: positions of the branch's own nodes.
    """

    name: str
    output: str
    skip: str
    value: str
    nodes: frozenset[int]


def find_branches(model: Model, *shapes: Shapes) -> list[Branch]:
    """Return the branches that can go, in graph order.

    Args:
        model: the model.
        shapes: of its values in some runs, with other sizes wherever the model takes them.
    """
    cutter = Cutter(model)
    found: list[Branch] = []
    for node in model.graph.node:
        if not _adds(model, node) or any(_is_kept(model, name) for name in node.output):
            continue
        first, second = node.input[:2]
        for skip, value in ((first, second), (second, first)):
            same = all(s.get(skip) == s.get(value) == s.get(node.output[0], ()) for s in shapes)
            nodes = _own_nodes(model, cutter, skip, value) if same else frozenset()
            inner = any(model.index.producer[branch.output] in nodes for branch in found)
            if _starts_at(model, cutter, nodes, skip) or (
                not inner and _is_projection(model, cutter, nodes, skip, value)
            ):
                found.append(Branch(label(node), node.output[0], skip, value, nodes))
                break
    return found


def _adds(model: Model, node: onnx.NodeProto) -> bool:
    return (node.op_type == "Add" and node.domain in ("", "ai.onnx")) or is_fused(model, node)


def _is_kept(model: Model, name: str) -> bool:
    """Whether a value is an output of the model, or a subgraph reads it."""
    return name in model.index.outputs or any(use.slot < 0 for use in model.index.uses.get(name, []))


def _own_nodes(model: Model, cutter: Cutter, skip: str, value: str) -> frozenset[int]:
    """Return the nodes that only the branch ``value`` needs; none when something else needs it."""
    if skip in cutter.constant or value in cutter.constant or model.index.producer.get(value) is None:
        return frozenset()
    if len(model.index.uses.get(value, [])) != 1 or value in model.index.outputs:
        return frozenset()
    nodes = cutter.ancestors([value], {skip}) - cutter.ancestors([skip])
    # What serves others too, such as an attention mask, stays where it is
    shared = True
    while shared:
        made = {o for k in nodes for o in model.graph.node[k].output if o and o != value}
        leaking = {
            name
            for name in made
            if name in model.index.outputs
            or any(u.index not in nodes for u in model.index.uses.get(name, []))
        }
        shared = bool(leaking)
        nodes = {k for k in nodes if not leaking & set(model.graph.node[k].output)}
    reads = {name for k in nodes for name in cutter.reads[k]}
    sizes = [np.prod(model.index.tensors[n].dims) for n in reads if n in model.index.tensors]
    has_weights = model.index.producer[value] in nodes and max(sizes, default=0) > 1
    return frozenset(nodes) if has_weights else frozenset()


def _starts_at(model: Model, cutter: Cutter, nodes: Collection[int], skip: str) -> bool:
    """Whether some of the nodes read the skip, or its norm that the same node makes."""
    producer = model.index.producer.get(skip)
    made = {skip} if producer is None else {*model.graph.node[producer].output}
    return any(not made.isdisjoint(cutter.reads[k]) for k in nodes)


def _is_projection(model: Model, cutter: Cutter, nodes: Collection[int], skip: str, value: str) -> bool:
    """Whether the skip is made from one value that the branch reads, by fewer matrices: one or none."""
    if not nodes:
        return False
    own = cutter.ancestors([skip]) - cutter.ancestors([value])
    inputs, others = (_inputs(model, cutter, each) for each in (own, nodes))
    few, many = (_matrices(model, cutter, each) for each in (own, nodes))
    return len(inputs) == 1 and inputs <= others and few <= 1 and few < many


def _inputs(model: Model, cutter: Cutter, nodes: Collection[int]) -> set[str]:
    """Return the activations that nodes read from outside."""
    made = {output for k in nodes for output in model.graph.node[k].output}
    return {name for k in nodes for name in cutter.reads[k]} - made - cutter.constant


def _matrices(model: Model, cutter: Cutter, nodes: Collection[int]) -> int:
    tensors = model.index.tensors
    return sum(n in tensors and is_matrix(tensors[n]) for k in nodes for n in cutter.reads[k])


def gated(model: Model, branches: Sequence[Branch]) -> tuple[Model, dict[str, str]]:
    """Return a copy with a gate in every branch, all open, and branch name -> the gate's constant."""
    result, names = model.copy(), Names(model)
    gates: dict[str, str] = {}
    adds = {branch.output: branch for branch in branches}
    nodes = list(result.graph.node)
    del result.graph.node[:]
    for node in nodes:
        branch = adds.get(node.output[0]) if _adds(model, node) else None
        if branch is not None:
            gate, through = names.fresh("onnxprune_gate"), names.fresh("onnxprune_gated")
            gates[branch.name] = gate
            result.graph.node.append(helper.make_node("Mul", [branch.value, gate], [through], name=through))
            slot = list(node.input).index(branch.value)
            node.input[slot] = through
        result.graph.node.append(node)
    types = infer(model)
    for branch in branches:
        kind = types[branch.value].type.tensor_type.elem_type if branch.value in types else 1
        one = np.ones((), helper.tensor_dtype_to_np_dtype(kind or 1))
        result.graph.initializer.append(numpy_helper.from_array(one, gates[branch.name]))
    result.reindex()
    return result, gates


def close(model: Model, gates: Mapping[str, str], names: Collection[str]) -> None:
    """Close the gates of some branches, in place."""
    for name in names:
        gate = gates[name]
        model.set_array(gate, np.zeros_like(model.array(gate)))


def bypass(model: Model, branches: Sequence[Branch]) -> Model:
    """Return a copy without these branches; the model has the graph that they were found in, or one of it."""
    result = model.copy()
    stands: dict[str, str] = {}  # sum -> what is left of it
    for branch in branches:
        left = stands.get(branch.skip, branch.skip)
        add = next(node for node in result.graph.node if branch.output in node.output)
        read = [*add.input]
        if is_fused(result, add):
            total = norm_alone(result, add, left)
        else:
            total = branch.output
            result.graph.node.remove(add)
        if total:
            stands[total] = left
            for node in result.graph.node:
                for slot, name in enumerate(node.input):
                    if name == total:
                        node.input[slot] = left
        result.reindex()
        drop_unread(result, read)
    drop_value_info(result.graph, set(stands))
    return result
