"""Nodes in topological order.

The ONNX specification wants it, ONNX Runtime does without it, and its own converter to float16 writes the
casts of inputs and outputs at the end. Every later stage walks nodes in order, so what can be sorted is:
only places change, and those of the fewest nodes that can be.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import onnx

from onnxprune.model import node_reads, subgraphs


def sort_nodes(proto: onnx.ModelProto) -> int:
    """Sort the nodes of the graph, of its subgraphs and of the local functions where they are out of order.

    Nodes that are in order already stay untouched, and so do those that no order helps (a cycle, two nodes
    that make one value): :func:`onnxprune.files.validate.check_structure` says what is wrong with these.

    Returns:
        How many graphs and functions were sorted.
    """
    return sum(map(_sort, (proto.graph, *proto.functions)))


def _sort(owner: onnx.GraphProto | onnx.FunctionProto) -> int:
    inner = sum(_sort(graph) for node in owner.node for graph in subgraphs(node))
    order = _order(owner.node)
    if order is None:
        return inner
    places = {_made(owner.node[index])[0]: place for place, index in enumerate(order)}
    owner.node.sort(key=lambda node: places[_made(node)[0]])  # in place: no weight is copied
    return inner + 1


def _order(nodes: Sequence[onnx.NodeProto]) -> list[int] | None:
    """Return the positions of ``nodes`` in topological order, else as they were (Kahn 1962).

    None when they are in order, or cannot be sorted.
    """
    maker: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for value in _made(node):
            if maker.setdefault(value, position) != position:
                return None
    needs = [{maker[v] for v in node_reads(node) if v in maker} for node in nodes]
    if all(max(before, default=-1) < position for position, before in enumerate(needs)):
        return None
    if not all(map(_made, nodes)):
        return None  # a node that makes nothing has no name to find it by
    readers: list[list[int]] = [[] for _ in nodes]
    for position, before in enumerate(needs):
        for index in before:
            readers[index].append(position)
    waiting = [len(before) for before in needs]
    ready = [position for position, count in enumerate(waiting) if not count]  # sorted, so a heap
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for position in readers[order[-1]]:
            waiting[position] -= 1
            if not waiting[position]:
                heapq.heappush(ready, position)
    return order if len(order) == len(nodes) else None


def _made(node: onnx.NodeProto) -> list[str]:
    return [value for value in node.output if value]
