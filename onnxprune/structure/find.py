"""Find what can be removed: visit the operators in graph order, then read groups off the labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.model import Model, label, outer_reads, subgraphs
from onnxprune.structure.groups import Axis, Group, Kind, Layout, Part, Pinned, Role, Structure
from onnxprune.structure.labels import Labels, RuleError
from onnxprune.structure.origins import follow, pin_sizes
from onnxprune.structure.rules import PARAMETERS, RULES, SOURCES
from onnxprune.structure.sample import made_up, sample_few

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_RANDOM = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")


def find_structure(
    model: Model, feeds: Mapping[str, Any] | None = None, threads: int | None = None
) -> Structure:
    """Return the groups of a model and what is pinned.

    The dependencies are those of DepGraph (Fang et al., CVPR 2023), found on positions instead of layers.
    Layers that share a tensor go together: :func:`onnxprune.passes.own_parameters.own_parameters` first gives
    each its own where sharing means nothing but equal values.

    Args:
        model: the model; it is left as it is.
        feeds: one batch of inputs: the shapes of all values are those of one run. At least two samples,
            where the model takes them, tell the batch from axes of size 1. None: inputs are made up.
        threads: of ONNX Runtime.

    Raises:
        DataError: when no inputs can be made up with which the model runs.
        ModelError: when ONNX Runtime refuses the model.
    """
    graph = Labels(model, *sample_few(model, made_up(model) if feeds is None else feeds, threads))
    for node in model.graph.node:
        _visit(graph, node)
    for name in model.index.outputs:
        _pin(graph, name, f"it reaches the graph output {name!r}")
        if name in graph.origins:
            pin_sizes(graph, name, f"its size reaches the graph output {name!r}")
    return _Reader(graph).structure()


def find_groups(
    model: Model, feeds: Mapping[str, Any] | None = None, threads: int | None = None
) -> tuple[tuple[Group, ...], tuple[Pinned, ...]]:
    """Return the groups and what is pinned, see :func:`find_structure`."""
    found = find_structure(model, feeds, threads)
    return found.groups, found.pinned


def _visit(graph: Labels, node: onnx.NodeProto) -> None:
    """Apply the rule of a node; where there is none, nothing that it reads can go."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if node.op_type == "Constant" and not domain:
        return
    _note_constant(graph, node)
    follow(graph, node)
    rule = RULES.get((domain, node.op_type))
    if any(subgraphs(node)):
        reason = f"read inside the subgraph of {label(node)}"
    elif node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
        reason = "quantised"
    elif rule is None:
        reason = f"{label(node)} is not followed"
    else:
        try:
            for slot in PARAMETERS.get(node.op_type, ()):
                if slot < len(node.input) and node.input[slot]:
                    _pin(graph, node.input[slot], f"it says what {label(node)} does")
            rule(graph, node)
            return
        except RuleError as error:
            reason = f"{label(node)} has {error}"
    if node.op_type in SOURCES and not domain:
        return
    names = {name for name in node.input if name}
    names.update(name for inner in subgraphs(node) for name in outer_reads(inner))
    for name in sorted(names):
        _pin(graph, name, reason)
    for name in node.output:
        if name in graph.sizes:
            graph.axes[name] = tuple(reason for _ in graph.sizes[name])


def _note_constant(graph: Labels, node: onnx.NodeProto) -> None:
    """Note that the outputs of a node hold stored numbers, or are the same for every input."""
    if node.op_type not in _RANDOM and all(name in graph.unchanging for name in node.input if name):
        graph.unchanging.update(name for name in node.output if name)
    skipped = PARAMETERS.get(node.op_type, ())
    data = [name for slot, name in enumerate(node.input) if name and slot not in skipped]
    if data and node.op_type not in _RANDOM and all(name in graph.constants for name in data):
        graph.constants.update(name for name in node.output if name)


def _pin(graph: Labels, name: str, reason: str) -> None:
    if name in graph.sizes:
        for axis in graph.read(name):
            graph.pin(axis, reason)


class _Reader:
    """Reads groups off the solved labels."""

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
