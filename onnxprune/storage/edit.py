"""Small edits of a model's constants that the storage passes share.

A weight keeps its home: what was an initializer is replaced by initializers, what was a ``Constant``
node by ``Constant`` nodes. So a model can be packed and unpacked without a trace.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

from onnxprune.files.tensors import TYPED_FIELDS
from onnxprune.model import Model, subgraphs


class Names:
    """Value names of a model, subgraphs included, and new ones that clash with none of them."""

    def __init__(self, model: Model) -> None:
        self._taken = set(_value_names(model.graph))

    def fresh(self, wanted: str) -> str:
        """Return ``wanted``, or ``wanted`` and a number, and take it."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name


def _value_names(graph: onnx.GraphProto) -> Iterator[str]:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from (value.name for value in values)
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield from node.input
        yield from node.output
        for inner in subgraphs(node):
            yield from _value_names(inner)


def fill(tensor: onnx.TensorProto, fresh: onnx.TensorProto) -> None:
    """Give ``tensor`` the shape, type and data of ``fresh``; its name and doc string stay."""
    for name in (*TYPED_FIELDS, "dims"):
        tensor.ClearField(name)
    tensor.data_type = fresh.data_type
    tensor.dims.extend(fresh.dims)
    tensor.raw_data = fresh.raw_data


def constant_node(tensor: onnx.TensorProto, name: str) -> onnx.NodeProto:
    """Return a ``Constant`` node that yields ``tensor`` under ``name``."""
    node: onnx.NodeProto = helper.make_node("Constant", [], [name], name=name, value=tensor)
    return node


def drop_value_info(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove the type information of ``names`` from the main graph."""
    for position in range(len(graph.value_info) - 1, -1, -1):
        if graph.value_info[position].name in names:
            del graph.value_info[position]


def drop_initializers(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove the plain initializers ``names``."""
    for position in range(len(graph.initializer) - 1, -1, -1):
        if graph.initializer[position].name in names:
            del graph.initializer[position]


def raise_ir_version(model: Model, version: int, packed: set[str]) -> None:
    """Raise the IR version to at least ``version`` without changing what the graph means.

    Below 4 every initializer must be listed as an input and cannot be overridden by the caller; from
    4 on the listing makes it a default that can. So the listings go, also those of ``packed``: weights
    that are initializers no more.
    """
    if model.proto.ir_version >= version:
        return
    if model.proto.ir_version < 4:
        constant = packed | {tensor.name for tensor in model.graph.initializer}
        for position in range(len(model.graph.input) - 1, -1, -1):
            if model.graph.input[position].name in constant:
                del model.graph.input[position]
    model.proto.ir_version = version


def is_overridable(model: Model, name: str) -> bool:
    """Whether callers may replace initializer ``name`` at run time: it is an input with a default."""
    return model.proto.ir_version >= 4 and any(value.name == name for value in model.graph.input)
