"""Cut a model into segments that run one after another.

A segment computes some wanted values from values computed before. Weights and everything derived
from weights alone never cross a cut: each segment brings its own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxprune.inmemory import without_values
from onnxprune.layers.recurrent import is_recurrent, states_node
from onnxprune.model import Model, node_reads, subgraphs


@dataclass(frozen=True)
class Segment:
    """A runnable piece of the graph.

    Attributes:
        nodes: positions in :attr:`Cutter.nodes`.
        inputs: values it reads that earlier segments or the caller provide.
        weights: weight names it uses (initializers only; Constant nodes are among ``nodes``).
    """

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]


class Cutter:
    """Answers what must run to get a value; built once per model.

    Attributes:
        nodes: those of the graph in its order, then a copy of each recurrent node that gives its states:
            values that can be asked for like any other (:func:`onnxprune.layers.recurrent.states_name`).
        reads: of each node.
        constant: values that depend on weights only.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._copies = [states_node(node) for node in model.graph.node if is_recurrent(node)]
        self.nodes = [*model.graph.node, *self._copies]
        self.reads = [node_reads(node) for node in self.nodes]
        self._producer = {copy.output[0]: len(model.graph.node) + k for k, copy in enumerate(self._copies)}
        self.initializers = {t.name for t in model.graph.initializer} | {
            t.values.name for t in model.graph.sparse_initializer
        }
        self.constant: set[str] = set(self.initializers)
        for node, reads in zip(self.nodes, self.reads, strict=True):
            if all(name in self.constant for name in reads) and not _is_random(node):
                self.constant.update(output for output in node.output if output)

    def ancestors(self, targets: Iterable[str], known: set[str] | frozenset[str] = frozenset()) -> set[int]:
        """Return the positions of all nodes needed for ``targets`` when the values ``known`` are given."""
        needed: set[int] = set()
        pending = [name for name in targets if name not in known]
        while pending:
            name = pending.pop()
            position = self.model.index.producer.get(name, self._producer.get(name))
            if position is None or position in needed:
                continue
            needed.add(position)
            pending.extend(name for name in self.reads[position] if name not in known)
        return needed

    def segment(self, targets: Iterable[str], known: set[str] | frozenset[str] = frozenset()) -> Segment:
        """Return the segment that computes ``targets`` from ``known`` values, graph inputs and weights.

        Targets that are known already, or weights, pass through it.
        """
        targets = list(targets)
        nodes = sorted(self.ancestors(targets, known))
        produced = {output for position in nodes for output in self.nodes[position].output}
        read = {name for position in nodes for name in self.reads[position]} | (set(targets) - produced)
        weights = sorted(name for name in read if name in self.initializers)
        inputs = sorted(read - produced - set(weights))
        return Segment(tuple(nodes), tuple(inputs), tuple(weights))

    def proto(
        self,
        segment: Segment,
        types: dict[str, np.dtype[np.generic]],
        outputs: Iterable[str],
        weights: Model,
        outside: Container[str] = (),
    ) -> onnx.ModelProto:
        """Return ``segment`` as a model.

        Args:
            segment: what to run.
            types: dtype of each of its inputs; shapes are left open.
            outputs: values to return.
            weights: the model whose weight values are used (dense or pruned; same graph).
            outside: weights whose values the session is given beside the model, see
                :func:`onnxprune.runtime.session`: that saves three copies of each.
        """
        source = weights.graph
        graph = onnx.GraphProto(name="segment")
        held = [*source.node, *self._copies]  # Constant nodes are weights too
        graph.node.extend(held[position] for position in segment.nodes)
        wanted = set(segment.weights)
        graph.initializer.extend(
            without_values(t) if t.name in outside else t for t in source.initializer if t.name in wanted
        )
        graph.sparse_initializer.extend(t for t in source.sparse_initializer if t.values.name in wanted)
        for name in segment.inputs:
            kind = helper.np_dtype_to_tensor_dtype(types[name])
            graph.input.append(helper.make_tensor_value_info(name, kind, None))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        model = onnx.ModelProto(ir_version=max(weights.proto.ir_version, 4), graph=graph)
        model.opset_import.extend(weights.proto.opset_import)
        model.functions.extend(weights.proto.functions)
        return model


def _is_random(node: onnx.NodeProto) -> bool:
    if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
        return True
    return any(_is_random(inner) for graph in subgraphs(node) for inner in graph.node)
