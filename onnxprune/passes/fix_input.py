"""Fix inputs to one value each, and put the branches that they choose in the place of their ``If`` nodes.

Matches: named inputs of the model; ``If`` nodes of the main graph whose condition then depends on no input,
or only on sizes of inputs that the model declares (:mod:`onnxprune.passes.fix_sizes`).
Changes: whatever read such an input reads a constant of its value, and so does what takes a declared size.
The nodes and constants of the branch that is taken come where the ``If`` was, the other branch goes, and so
does what only it and the condition read.
Names change where others have them already. The inputs stay, unread, so callers need no change.
Guarantees: with these values the outputs are what they were; with others they are as with these.
So a model that holds a network for each sampling rate becomes one network, whose weights can be pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model import Model, label, subgraphs
from onnxprune.passes.constants import evaluate
from onnxprune.passes.fix_sizes import fix_sizes
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.edit import Names, is_overridable, raise_ir_version


def fix_inputs(model: Model, values: Mapping[str, Any]) -> list[str]:
    """Change ``model`` in place; return the names of the ``If`` nodes that are gone.

    Args:
        model: our own copy.
        values: input -> its value, see :func:`input_value`.

    Raises:
        ModelError: when there is no such input, or it cannot have this value.
    """
    arrays = {name: input_value(model, name, value) for name, value in values.items()}
    raise_ir_version(model, 4, set())  # before it, each new constant would have to be an input as well
    names = Names(model)
    renamed = {name: names.fresh(f"{name}_fixed") for name in values}
    for node in model.graph.node:
        _rename_reads(node, renamed)
    model.graph.initializer.extend(
        numpy_helper.from_array(array, renamed[name]) for name, array in arrays.items()
    )
    model.reindex()
    gone = []
    fix_sizes(model)
    while (found := _decided(model)) is not None:
        position, branch = found
        gone.append(label(model.graph.node[position]))
        _inline(model, position, branch)
        fix_sizes(model)
    drop_unread(model, renamed.values())
    return gone


def input_value(model: Model, name: str, value: Any) -> NDArray[Any]:
    """Return ``value`` (a number, a list, an array) as an array of the type of input ``name``.

    A single number is given as many axes of length 1 as the input has.

    Raises:
        ModelError: when there is no such input, or it cannot have this value.
    """
    given = model.index.inputs.get(name)
    if given is None:
        there = ", ".join(model.index.inputs) or "none"
        raise ModelError(f"{model.name}: no input named {name!r}", f"its inputs are {there}")
    kind = given.type.tensor_type
    wanted = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    try:
        array = np.asarray(value)
        found = array.astype(wanted)
        exact = array.dtype.kind in "bif" and bool(np.all(found == array))
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        raise ModelError(f"{model.name}: input {name!r} holds {wanted}, which {value!r} is not")
    if not found.ndim:
        found = found.reshape((1,) * len(dims))
    fits = len(dims) == found.ndim and all(d in (None, n) for d, n in zip(dims, found.shape, strict=True))
    if kind.HasField("shape") and not fits:
        shape = ", ".join("?" if d is None else str(d) for d in dims)
        raise ModelError(f"{model.name}: input {name!r} has shape [{shape}], its value {list(found.shape)}")
    return found


def _decided(model: Model) -> tuple[int, onnx.GraphProto] | None:
    """Return the first ``If`` whose condition is constant, and the branch that it takes."""
    for position, node in enumerate(model.graph.node):
        if node.op_type != "If" or node.domain not in ("", "ai.onnx") or _replaceable(model, node.input[0]):
            continue
        found = evaluate(model, [node.input[0]])
        if found:
            taken = "then_branch" if bool(np.all(found[node.input[0]])) else "else_branch"
            return position, next(a.g for a in node.attribute if a.name == taken)
    return None


def _replaceable(model: Model, value: str) -> bool:
    """Whether a value comes from an input, or from a constant that callers may replace."""
    waiting, seen = [value], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in model.index.inputs or is_overridable(model, name):
            return True
        made = model.index.producer.get(name)
        if made is not None:
            waiting.extend(n for n in model.graph.node[made].input if n)
    return False


def _inline(model: Model, position: int, source: onnx.GraphProto) -> None:
    """Put the nodes of a branch in the place of the ``If`` node at ``position``."""
    node, branch = onnx.NodeProto(), onnx.GraphProto()
    node.CopyFrom(model.graph.node[position])
    branch.CopyFrom(source)
    del model.graph.node[position]
    names = Names(model)  # of all but the branches
    renamed: dict[str, str] = {}
    made = {t.name for t in branch.initializer} | {o for inner in branch.node for o in inner.output if o}
    made |= {sparse.values.name for sparse in branch.sparse_initializer}
    results = list(zip((o.name for o in branch.output), node.output, strict=True))
    copies = []  # of values from outside, or of one that is an output twice
    for inner, outer in results:
        if outer and inner in made and inner not in renamed:
            renamed[inner] = outer
        elif outer:
            copies.append((inner, outer))
    for name in sorted(made - renamed.keys()):
        renamed[name] = names.fresh(name)
    nodes = list(branch.node)
    nodes += [helper.make_node("Identity", [inner], [outer]) for inner, outer in copies]
    _name_apart(model, nodes)
    for inner_node in nodes:
        _rename_reads(inner_node, renamed)
        for slot, name in enumerate(inner_node.output):
            inner_node.output[slot] = renamed.get(name, name)
    for tensor in (*branch.initializer, *(sparse.values for sparse in branch.sparse_initializer)):
        tensor.name = renamed[tensor.name]
    for offset, inner_node in enumerate(nodes):
        model.graph.node.insert(position + offset, inner_node)
    model.graph.initializer.extend(branch.initializer)
    model.graph.sparse_initializer.extend(branch.sparse_initializer)
    model.reindex()
    drop_unread(model, [node.input[0], *_outside(node)])


def _outside(node: onnx.NodeProto) -> Iterator[str]:
    """Yield all names that the branches of a node read."""
    for graph in subgraphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from inner.input
            yield from _outside(inner)


def _rename_reads(node: onnx.NodeProto, renamed: Mapping[str, str]) -> None:
    """Rename what a node reads, its subgraphs included. Names of values are unlike in nested scopes."""
    for slot, name in enumerate(node.input):
        node.input[slot] = renamed.get(name, name)
    for graph in subgraphs(node):
        for inner in graph.node:
            _rename_reads(inner, renamed)
        for value in graph.output:
            value.name = renamed.get(value.name, value.name)


def _name_apart(model: Model, nodes: list[onnx.NodeProto]) -> None:
    """Give ``nodes`` names that no other node has: two of one name are refused."""
    taken = {node.name for node in model.graph.node if node.name}
    for node in nodes:
        name, number = node.name, 1
        while name and name in taken:
            name, number = f"{node.name}_{number}", number + 1
        node.name = name
        taken.add(name)
