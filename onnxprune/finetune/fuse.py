"""Gelu, HardSwish, scales and layer normalisation, written out in exports, as one node: quicker to train.

A group is replaced when nothing outside reads a value inside it. Nodes of the model are not changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import onnx
from onnx import helper

from onnxprune.finetune.registry import FUSED_DOMAIN, plain
from onnxprune.model import node_reads

Scalar = Callable[[str], float | None]
Group = tuple[set[int], int, onnx.NodeProto]  # nodes to leave out, the last of them, and what stands for them


def fuse(nodes: Sequence[onnx.NodeProto], keep: Collection[str], scalar: Scalar) -> list[onnx.NodeProto]:
    """Return ``nodes`` with groups replaced.

    Args:
        nodes: of one graph, in order.
        keep: values that must stay.
        scalar: returns the number of a constant with one element, None for any other value.
    """
    search = _Search(nodes, keep, scalar)
    result: list[onnx.NodeProto | None] = list(nodes)
    for position, node in enumerate(nodes):
        matches = {"Erf": search.gelu, "Sqrt": search.normalization, "Clip": search.hardswish}.get(
            node.op_type
        )
        group = matches(position) if matches and not plain(node.domain) else None
        if group is not None and search.closed(group):
            inside, last, fresh = group
            for other in inside:
                result[other] = None
            result[last] = fresh
    return [node for node in result if node is not None]


class _Search:
    def __init__(self, nodes: Sequence[onnx.NodeProto], keep: Collection[str], scalar: Scalar) -> None:
        self.nodes, self.keep, self.scalar = nodes, keep, scalar
        self.maker = {output: i for i, node in enumerate(nodes) for output in node.output if output}
        self.readers: dict[str, set[int]] = {}
        for i, node in enumerate(nodes):
            for name in node_reads(node):
                self.readers.setdefault(name, set()).add(i)

    def closed(self, group: Group) -> bool:
        inside, last, _ = group
        names = {name for i in inside - {last} for name in self.nodes[i].output if name}
        return names.isdisjoint(self.keep) and all(self.readers.get(n, set()) <= inside for n in names)

    def made_by(self, name: str, *kinds: str) -> int | None:
        """Position of the node that makes ``name``, when it is one of ``kinds``."""
        position = self.maker.get(name)
        if position is None or plain(self.nodes[position].domain):
            return None
        return position if self.nodes[position].op_type in kinds else None

    def reader(self, name: str, *kinds: str) -> int | None:
        """Position of the only node that reads ``name``, when it is one of ``kinds``."""
        readers = self.readers.get(name, set())
        position = next(iter(readers)) if len(readers) == 1 else None
        return position if position is not None and self.nodes[position].op_type in kinds else None

    def is_number(self, name: str, value: float) -> bool:
        number = self.scalar(name)
        return number is not None and math.isclose(number, value, rel_tol=1e-4)

    def times(self, position: int | None, value: float) -> str | None:
        """The other input of a Mul or Add with the constant ``value``."""
        if position is None:
            return None
        a, b = self.nodes[position].input
        return a if self.is_number(b, value) else b if self.is_number(a, value) else None

    def gelu(self, erf: int) -> Group | None:
        """Match x * 0.5 * (1 + erf(x / sqrt 2)), its three factors in any order."""
        inner = self.made_by(self.nodes[erf].input[0], "Div", "Mul")
        if inner is None:
            return None
        node = self.nodes[inner]
        if node.op_type == "Div":
            x = node.input[0] if self.is_number(node.input[1], math.sqrt(2)) else None
        else:
            x = self.times(inner, math.sqrt(0.5))
        add = self.reader(self.nodes[erf].output[0], "Add")
        if x is None or add is None or self.times(add, 1.0) is None:
            return None
        first = self.reader(self.nodes[add].output[0], "Mul")
        if first is None:
            return None
        inside = {inner, erf, add, first}
        other = self._other(first, self.nodes[add].output[0])
        second = self.reader(self.nodes[first].output[0], "Mul")
        half = self.made_by(other, "Mul")
        if half is not None and other != x and self.times(half, 0.5) == x:
            last = first
            inside.add(half)
        elif second is not None and (
            (other == x and self.times(second, 0.5) == self.nodes[first].output[0])
            or (self.is_number(other, 0.5) and self._other(second, self.nodes[first].output[0]) == x)
        ):
            last = second
            inside.add(second)
        else:
            return None
        return inside, last, self._node("Gelu", x, last)

    def hardswish(self, clip: int) -> Group | None:
        """Match x * clip(x + 3, 0, 6) / 6, divided before or after the product."""
        node = self.nodes[clip]
        add = self.made_by(node.input[0], "Add")
        given = {a.name: a.f for a in node.attribute}
        limits = [given.get("min"), given.get("max")] if given else [self.scalar(n) for n in node.input[1:]]
        x = self.times(add, 3.0)
        first = self.reader(node.output[0], "Mul", "Div")
        second = None if first is None else self.reader(self.nodes[first].output[0], "Mul", "Div")
        if add is None or x is None or first is None or second is None or limits != [0.0, 6.0]:
            return None
        steps = {self._step(first, node.output[0], x), self._step(second, self.nodes[first].output[0], x)}
        if steps != {"product", "sixth"}:
            return None
        return {add, clip, first, second}, second, self._node("HardSwish", x, second)

    def _step(self, position: int, value: str, x: str) -> str:
        """Say whether a node multiplies ``value`` with ``x``, or divides it by six."""
        node = self.nodes[position]
        if node.op_type == "Div":
            return "sixth" if node.input[0] == value and self.is_number(node.input[1], 6.0) else ""
        if sorted(node.input) == sorted((value, x)):
            return "product"
        return "sixth" if self.times(position, 1 / 6) == value else ""

    def normalization(self, root: int) -> Group | None:
        """Match (x - mean) / sqrt(mean of squares + epsilon)."""
        add = self.made_by(self.nodes[root].input[0], "Add")
        if add is None:
            return None
        a, b = self.nodes[add].input
        variance, epsilon = (a, self.scalar(b)) if self.scalar(b) is not None else (b, self.scalar(a))
        spread = self.made_by(variance, "ReduceMean")
        square = None if spread is None else self.made_by(self.nodes[spread].input[0], "Pow", "Mul")
        last = self.reader(self.nodes[root].output[0], "Div")
        if epsilon is None or spread is None or square is None or last is None:
            return None
        base, power = self.nodes[square].input
        if not (base == power if self.nodes[square].op_type == "Mul" else self.is_number(power, 2.0)):
            return None
        centred, divided = self.made_by(base, "Sub"), self.made_by(self.nodes[last].input[0], "Sub")
        if centred is None or divided is None or self.nodes[last].input[1] != self.nodes[root].output[0]:
            return None
        x, average = self.nodes[centred].input
        mean = self.made_by(average, "ReduceMean")
        if mean is None or list(self.nodes[divided].input) != [x, average] or self.nodes[mean].input[0] != x:
            return None
        axis = self._axis(mean)
        if axis is None or axis != self._axis(spread):
            return None
        inside = {add, root, spread, square, centred, divided, mean, last}
        return inside, last, self._node("Normalize", x, last, axis=axis, epsilon=epsilon)

    def _axis(self, position: int) -> int | None:
        """The one axis of a ReduceMean that keeps its dimension."""
        node = self.nodes[position]
        given = {a.name: a for a in node.attribute}
        if "keepdims" in given and not given["keepdims"].i:
            return None
        if "axes" in given:
            return given["axes"].ints[0] if len(given["axes"].ints) == 1 else None
        axis = self.scalar(node.input[1]) if len(node.input) > 1 else None
        return None if axis is None else int(axis)

    def _other(self, position: int, name: str) -> str:
        a, b = map(str, self.nodes[position].input)
        return b if a == name else a

    def _node(self, kind: str, x: str, last: int, **attributes: Any) -> onnx.NodeProto:
        node = self.nodes[last]
        return helper.make_node(
            kind, [x], list(node.output), name=node.name, domain=FUSED_DOMAIN, **attributes
        )
