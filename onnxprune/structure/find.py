"""Find what can be removed: visit the operators in graph order, each by its rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from onnxprune.model import Model, label, outer_reads, subgraphs
from onnxprune.structure.groups import Group, Pinned, Structure
from onnxprune.structure.labels import Labels, RuleError
from onnxprune.structure.origins import follow, pin_sizes
from onnxprune.structure.reading import Reader
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
    return Reader(graph).structure()


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
