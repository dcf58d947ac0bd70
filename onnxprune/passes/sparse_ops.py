"""Put ops that have a kernel in the place of products and what follows them.

Matches: MatMul, Gemm and Conv whose weight :mod:`onnxprune.passes.pack` packed, also one that several nodes
read, and convolutions with a dense float32 weight; with the bias, residual Add, activation and
LayerNormalization behind them, and a constant zero padding before a convolution
(:mod:`onnxprune.passes.products`, ``chains``, ``regions``). Only where nothing else reads the values in
between, and none of them is a graph output.
Changes: the nodes of each chosen chain become one node of domain ``onnxprune``; it has the name of the
product and the output of the chain. A bias that is not a vector becomes one; where the model has none, the
op gets zeros. Nodes that share a weight share its packed tensors; the ``Decode`` node that makes it dense
stays only while another node reads it. Constants that nobody reads any more go. Writes the type and shape of
each output, without which ONNX Runtime does not fuse what follows. Writes the functions; IR version 8 or
newer.
Guarantees: stock ONNX Runtime computes the same, from the same weights; ``unpack`` makes standard nodes
again. What is not chosen stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.model import Model
from onnxprune.passes.chains import Chain, chains
from onnxprune.passes.expand import NO_BIAS
from onnxprune.passes.products import find_products
from onnxprune.passes.shapes import Shapes
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.domain import write_functions
from onnxprune.storage.edit import (
    Names,
    drop_value_info,
    fill,
    is_overridable,
    raise_ir_version,
)
from onnxprune.storage.form import DOMAIN, MIN_IR_VERSION
from onnxprune.storage.sparse_functions import number_attributes


def find_chains(model: Model, shapes: Shapes) -> tuple[list[tuple[Chain, ...]], dict[str, str]]:
    """Return what could be replaced.

    Returns:
        For each product in graph order its chains, shortest first; a node belongs to one product only,
        so any choice of one chain each can be replaced. And why the other weights stay: name -> reason.
    """
    found = find_products(model, shapes)
    fixed = {value.name for value in model.graph.input if is_overridable(model, value.name)}
    fixed &= model.index.tensors.keys()  # constants to us, but callers may replace them
    taken: set[int] = set()
    options: list[tuple[Chain, ...]] = []
    for product in reversed(found.products):  # of two branches that meet in an Add, the later one takes it
        possible = [
            chain
            for chain in chains(model, product, shapes)
            if not taken.intersection(chain.nodes)
            and not fixed.intersection(n for i in chain.nodes for n in model.graph.node[i].input)
        ]
        if possible:
            taken.update(possible[-1].nodes)
            options.append(tuple(possible))
        else:
            found.refusals[product.weight] = "no op fits it"
    return options[::-1], found.refusals


def rewrite(model: Model, chosen: Sequence[Chain], shapes: Shapes) -> None:
    """Replace the ``chosen`` chains, found in this very model, in place."""
    if not chosen:
        return
    writer = _Writer(model, shapes)
    for chain in chosen:
        writer.replace(chain)
    writer.finish()


class _Writer:
    """State of one call: new nodes are put in place once all are known."""

    def __init__(self, model: Model, shapes: Shapes) -> None:
        self.model, self.shapes = model, shapes
        self.names = Names(model)
        self.gone: dict[int, onnx.NodeProto | None] = {}  # None: without a successor
        self.stale: set[str] = set()
        self.types: list[onnx.ValueInfoProto] = []
        self.zeros: dict[tuple[str, int], str] = {}  # weight and size -> bias of nodes that have none
        self.values: dict[str, str] = {}  # weight -> name of its packed values

    def replace(self, chain: Chain) -> None:
        """Make the node of one chain."""
        product, graph = chain.product, self.model.graph
        self.values[product.weight] = product.tensors[-1]
        old = graph.node[product.position]
        node = onnx.NodeProto(op_type=chain.op_type, domain=DOMAIN, name=old.name, doc_string=old.doc_string)
        node.metadata_props.extend(old.metadata_props)
        node.input.extend([product.x, *product.tensors, self._bias(chain)])
        node.input.extend([chain.residual] * bool(chain.residual) + list(chain.norm))
        node.output.append(chain.output)
        node.attribute.extend(product.attributes)
        node.attribute.extend(number_attributes(chain.numbers, self.model.opset))
        for position in chain.nodes:
            self.gone[position] = None
            self.stale.update(graph.node[position].output)
        self.gone[chain.nodes[-1]] = node
        value = self.shapes.value_info(chain.output, product.features, product.axis)
        if value is not None and chain.output not in self.model.index.outputs:
            self.types.append(value)

    def _bias(self, chain: Chain) -> str:
        """Name of the bias as a vector; made when there is none."""
        features = chain.product.features
        if not chain.bias:
            key = chain.product.weight, features
            if key not in self.zeros:
                name = self.names.fresh(f"{chain.product.weight}{NO_BIAS}")
                self.zeros[key] = self._constant(name, np.zeros(features, np.float32))
            return self.zeros[key]
        tensor = self.model.index.tensors.get(chain.bias)
        if tensor is None or list(tensor.dims) == [features]:
            return chain.bias
        vector = np.broadcast_to(self.model.array(chain.bias).reshape(-1), (features,))
        vector = np.ascontiguousarray(vector)
        if all(use.index in chain.nodes for use in self.model.index.uses[chain.bias]):
            fill(tensor, numpy_helper.from_array(vector))
            self.stale.add(chain.bias)
            return chain.bias
        return self._constant(self.names.fresh(f"{chain.bias}_vector"), vector)

    def _constant(self, name: str, array: NDArray[np.float32]) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def finish(self) -> None:
        """Put the new nodes in place and clean up."""
        graph = self.model.graph
        read = {name for position in self.gone for name in graph.node[position].input if name}
        for position in sorted(self.gone, reverse=True):
            node = self.gone[position]
            if node is None:
                del graph.node[position]
            else:
                graph.node[position].CopyFrom(node)
        drop_value_info(graph, self.stale)
        self.model.reindex()
        drop_unread(self.model, read)
        self._rename_values()
        graph.value_info.extend(self.types)
        raise_ir_version(self.model, MIN_IR_VERSION, set())
        self.model.reindex()
        write_functions(self.model)

    def _rename_values(self) -> None:
        """Give the packed values the names of weights that no node decodes any more, as ``pack`` does."""
        index, graph = self.model.index, self.model.graph
        renamed = {
            values: weight
            for weight, values in self.values.items()
            if weight != values and weight not in index.producer and weight not in index.tensors
        }
        for values, weight in renamed.items():
            index.tensors[values].name = weight
            if values in index.constants:
                graph.node[index.constants[values]].output[0] = weight
        for node in graph.node:
            for slot, name in enumerate(node.input):
                node.input[slot] = renamed.get(name, name)


def longest(options: Sequence[tuple[Chain, ...]]) -> list[Chain]:
    """Return the longest chain of each product."""
    return [chain[-1] for chain in options]
