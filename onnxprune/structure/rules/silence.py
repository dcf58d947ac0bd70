"""Where masked units are zero, and which weights must be zero for it.

Masking makes the columns zero that read a unit. A sum along the units, such as a mean square, has no columns:
it is the sum of what stays if it reads zeros for what goes. So the weights that make these zeros are masked
too: rows of matrices and tables, and what is added to them.
"""

from __future__ import annotations

from onnxprune.structure.labels import Labels
from onnxprune.structure.rules.zeros import need_of, why_loud


def silence(graph: Labels, value: str, axis: int) -> str:
    """Mark what must be zero so that a value is zero on an axis where units are masked.

    Returns:
        Why it cannot be; empty when all of it is marked.
    """
    _follow(graph, value)
    why = why_loud(graph, (value, axis))
    waiting = [] if why else [(value, axis)]
    while waiting:
        place = waiting.pop()
        if place in graph.silent:
            continue
        graph.silent.add(place)
        if place[0] in graph.model.index.tensors:
            graph.mark(graph.read(place[0])[place[1]], "zero")
        else:
            waiting += [other for other in graph.needs[place] if isinstance(other, tuple)]
    return why


def _follow(graph: Labels, value: str) -> None:
    """Note what all values need to be zero, up to ``value``."""
    end = graph.model.index.producer.get(value, -1) + 1
    for node in graph.model.graph.node[graph.followed : end]:
        for name in node.output:
            for axis, labels in enumerate(graph.axes.get(name, ())):
                if not isinstance(labels, str) and name not in graph.model.index.tensors:
                    graph.needs[name, axis] = need_of(graph, node, name, axis)
    graph.followed = max(graph.followed, end)
