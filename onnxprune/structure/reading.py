"""Read groups off the labels of a model: units that lie on the same axes of the same stored tensors."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.model import label
from onnxprune.structure.groups import Axis, Group, Kind, Layout, Part, Pinned, Role, Structure
from onnxprune.structure.labels import Labels


class Reader:
    """Reads groups off the solved labels.

    Args:
        graph: after all operators were visited.
    """

    def __init__(self, graph: Labels) -> None:
        self.graph, self.model = graph, graph.model
        self.units, self.reasons, self.marks = graph.solve()
        # The axes of stored tensors that have labels, in the order in which nodes read them
        self.places = [
            (name, axis, labels)
            for name in self.model.index.tensors
            for axis, labels in enumerate(graph.axes.get(name, ()))
            if not isinstance(labels, str)
        ]
        first = {name: uses[0].index for name, uses in self.model.index.uses.items()}
        self.places.sort(key=lambda place: first.get(place[0], 0))
        self._cache: dict[str, NDArray[np.int64]] = {}

    def structure(self) -> Structure:
        """Return what can go together, and what cannot go and why."""
        lie = defaultdict[int, list[int]](list)  # unit -> the places where it lies
        for number, (_, _, labels) in enumerate(self.places):
            for unit in np.unique(self.units[labels]).tolist():
                lie[unit].append(number)
        alike = defaultdict[tuple[tuple[int, ...], str], list[int]](list)
        for unit, numbers in lie.items():
            alike[tuple(numbers), self.reasons.get(unit, "")].append(unit)
        groups: list[Group] = []
        pinned: list[Pinned] = []
        taken: set[str] = set()
        for (places, reason), units in sorted(alike.items()):
            members = np.sort(np.array(units, np.int64))
            parts = [self._part(number, members) for number in places]
            makes, reads = any(p.role == "producer" for p in parts), any(p.reads for p in parts)
            if not makes and not reads:
                continue
            kind = self._kind(members, parts)
            name = self._name(parts)
            reason = reason or self._refusal(members, makes, reads)
            if reason:
                pinned.append(Pinned(name, kind, len(members), reason))
                continue
            number, first = 2, name
            while name in taken:
                name, number = f"{first}:{number}", number + 1
            taken.add(name)
            groups.append(self._group(name, kind, members, parts))
        return Structure(tuple(groups), tuple(pinned), self._layout())

    def _refusal(self, members: NDArray[np.int64], makes: bool, reads: bool) -> str:
        if not makes:
            return "no weight makes it"
        if not reads:
            return "no weight reads it"
        return "one unit only" if len(members) == 1 else ""

    def _part(self, number: int, members: NDArray[np.int64]) -> Part:
        name, axis, labels = self.places[number]
        units = self.units[labels]
        index = np.searchsorted(members, units)
        index[index == len(members)] = 0
        index[members[index] != units] = -1
        own = labels[index >= 0]
        makes, reads, zero = (
            what in self.marks and bool(self.marks[what][own].any())
            for what in ("producer", "consumer", "zero")
        )
        role: Role = "producer" if makes else "consumer" if reads else "other"
        return Part(name, axis, index, role, reads, zero)

    def _marked(self, what: str, members: NDArray[np.int64]) -> bool:
        if what not in self.marks:
            return False
        if what not in self._cache:
            self._cache[what] = np.unique(self.units[self.marks[what]])
        return bool(np.isin(members, self._cache[what]).any())

    def _kind(self, members: NDArray[np.int64], parts: list[Part]) -> Kind:
        if self._marked("head", members):
            return "head"
        if self._marked("hidden", members):
            return "hidden"
        producers = [part for part in parts if part.role == "producer"]
        makers = {node.op_type for part in producers or parts for node in self._nodes(part)}
        if any("Conv" in op for op in makers):
            return "channel"
        if self._marked("table", members) or self._marked("sum", members):
            return "width"
        return "neuron"

    def _nodes(self, part: Part) -> list[onnx.NodeProto]:
        uses = self.model.index.uses.get(part.tensor, ())
        return [self.model.graph.node[use.index] for use in uses]

    def _name(self, parts: list[Part]) -> str:
        makers = [p for p in parts if p.role == "producer"] or [p for p in parts if p.role == "consumer"]
        nodes = self._nodes(makers[0])
        return label(nodes[0]) if nodes else makers[0].tensor

    def _group(self, name: str, kind: Kind, members: NDArray[np.int64], parts: list[Part]) -> Group:
        nodes = dict.fromkeys(label(node) for part in parts for node in self._nodes(part))
        weights = np.zeros(len(members), np.int64)
        for part in parts:
            size = int(np.prod(self.model.index.tensors[part.tensor].dims)) // len(part.index)
            weights += np.bincount(part.index[part.index >= 0], minlength=len(members)) * size
        return Group(name, kind, len(members), tuple(parts), tuple(nodes), weights, members)

    def _layout(self) -> Layout:
        axes: dict[str, tuple[Axis, ...]] = {
            name: tuple(axis if isinstance(axis, str) else self.units[axis] for axis in found)
            for name, found in self.graph.axes.items()
        }
        return Layout(self.graph.sizes, axes, self.graph.numbers)
