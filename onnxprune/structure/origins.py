"""Which sizes the elements of integer values come from: a size that is used as a number cannot change.

Shapes are followed through integer arithmetic, element by element, to where they say a shape again. There the
removal puts them right. Anything else that reads them computes with the number of units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.attributes import ints, number
from onnxprune.model import label, outer_reads, subgraphs
from onnxprune.structure.computed import ARITHMETIC, shape_part
from onnxprune.structure.labels import Labels, Place, RuleError
from onnxprune.structure.rewrite import READS
from onnxprune.structure.rules.parts import slice_ranges

_INPUT: Place = ("", 0)  # what an input of the model holds
_ELEMENTWISE = frozenset((
    "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Sum", "Neg", "Abs", "Sign", "Pow", "Where", "Equal",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor",
))  # fmt: skip
_union: Callable[..., Any] = np.frompyfunc(lambda a, b: a | b, 2, 1)


def follow(graph: Labels, node: onnx.NodeProto) -> None:
    """Note where the elements come from that a node makes, or pin the sizes that it reads as numbers."""
    op, source = node.op_type, node.input[0] if node.input else ""
    if node.domain in ("", "ai.onnx") and op in ("Shape", "Size"):
        sizes = graph.sizes.get(source, ())
        each = [frozenset({(source, axis)}) for axis in range(len(sizes))]
        everything = frozenset().union(*each) if op == "Size" else frozenset()
        graph.origins[node.output[0]] = (
            _filled((), everything) if op == "Size" else _filled_by(shape_part(node, each))
        )
        return
    slots = READS.get(op, ()) if node.domain in ("", "ai.onnx") else ()
    read = {name for slot, name in enumerate(node.input) if slot not in slots} & graph.origins.keys()
    if read and node.domain in ("", "ai.onnx") and op in ARITHMETIC and node.output[0] in graph.numbers:
        try:
            graph.origins.update(_made(graph, node, slots))
            return
        except (IndexError, KeyError, ValueError, RuleError):  # what the operator's rule will refuse too
            pass
    inner = {name for body in subgraphs(node) for name in outer_reads(body)} & graph.origins.keys()
    for name in sorted(read | inner):
        pin_sizes(graph, name, f"{label(node)} computes with its size")


def pin_sizes(graph: Labels, name: str, reason: str) -> None:
    """Keep the axes whose sizes the value ``name`` comes from."""
    for value, axis in sorted(frozenset().union(*graph.origins[name].ravel().tolist())):
        if value:
            graph.pin(graph.read(value)[axis], reason)


def _made(graph: Labels, node: onnx.NodeProto, slots: Iterable[int]) -> dict[str, NDArray[Any]]:
    op, data = node.op_type, _of(graph, node.input[0])
    shape = graph.sizes[node.output[0]]
    if op in ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"):
        return {node.output[0]: data.reshape(shape)}
    if op in _ELEMENTWISE:
        done = data
        for name in node.input[1:]:
            done = np.asarray(_union(done, _of(graph, name)), object)
        return {node.output[0]: done}
    axis = int(number(node, "axis", 0))
    if op == "Concat":
        return {node.output[0]: np.concatenate([_of(graph, name) for name in node.input], axis)}
    if op == "Gather" and node.input[1] not in graph.origins:
        places = graph.number(node.input[1])
        if places is not None and node.input[1] in graph.unchanging:
            return {node.output[0]: np.asarray(np.take(data, places, axis), object).reshape(shape)}
    if op == "Slice":
        taken = [slice(None)] * data.ndim
        for at, (start, end, step) in slice_ranges(graph, node).items():
            taken[at] = slice(start, None if step < 0 and end < -data.shape[at] else end, step)
        return {node.output[0]: data[tuple(taken)]}
    if op == "Split":
        ends = np.cumsum([graph.sizes[name][axis] for name in node.output])[:-1]
        return dict(zip(node.output, np.split(data, ends, axis), strict=True))
    if op == "Transpose":
        return {node.output[0]: data.transpose(ints(node, "perm", tuple(range(data.ndim))[::-1]))}
    names = [name for slot, name in enumerate(node.input) if name and slot not in slots]
    everything = frozenset().union(*(x for name in names for x in _of(graph, name).ravel().tolist()))
    return {name: _filled(graph.sizes[name], everything) for name in node.output if name}


def _of(graph: Labels, name: str) -> NDArray[Any]:
    """Return an array of sets of origins, one for each element of a value."""
    if name in graph.origins:
        return graph.origins[name]
    return _filled(graph.shape(name), frozenset() if name in graph.unchanging else frozenset({_INPUT}))


def _filled(shape: tuple[int, ...], what: frozenset[Place]) -> NDArray[Any]:
    return _filled_by([what] * math.prod(shape)).reshape(shape)


def _filled_by(sets: list[frozenset[Place]]) -> NDArray[Any]:
    result = np.empty(len(sets), object)
    for place, each in enumerate(sets):
        result[place] = each
    return result
