"""Remove constants, and nodes that compute constants, when nothing reads them any more."""

from __future__ import annotations

from collections.abc import Iterable

from onnxprune.model import Model
from onnxprune.storage.edit import drop_initializers, drop_value_info


def drop_unread(model: Model, names: Iterable[str]) -> None:
    """Remove the values ``names`` that nothing reads, and then what only they were made from.

    Matches: initializers and outputs of nodes; graph inputs and outputs stay. The index must be current.
    """
    index, graph = model.index, model.graph
    kept = {value.name for value in graph.input} | index.outputs.keys()
    dead: set[int] = set()
    unread: set[str] = set()
    waiting = sorted(name for name in names if name)
    while waiting:
        name = waiting.pop()
        if name in kept or {use.index for use in index.uses.get(name, [])} - dead:
            continue
        unread.add(name)
        position = index.producer.get(name)
        if position is None or position in dead:
            continue
        node = graph.node[position]
        if all(output in unread for output in node.output if output):
            dead.add(position)
            waiting.extend(name for name in node.input if name)
    for position in sorted(dead, reverse=True):
        del graph.node[position]
    drop_initializers(graph, unread)
    drop_value_info(graph, unread)
    model.reindex()
