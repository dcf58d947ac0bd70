"""The model in memory: the protobuf and an index of who makes and who uses each value.

All tensor data is inline in ``proto`` once :func:`onnxprune.io.load` returns, also what came from
external files; ``Model.external`` remembers where it came from. A *weight* is a named constant:
an initializer, or the output of a ``Constant`` node (old Paddle exports keep all of them there).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.files.tensors import TYPED_FIELDS, estimated_bytes

MAX_PROTO_BYTES = 2**31 - 1  # protobuf refuses longer messages


@dataclass(frozen=True)
class Use:
    """One place where a value is read: node ``index`` in graph order and its input ``slot``.

    ``slot`` is -1 when a subgraph of the node reads the value from the outer scope.
    """

    index: int
    slot: int


@dataclass
class GraphIndex:
    """Lookup tables of the main graph. Node positions are indices into ``graph.node``."""

    producer: dict[str, int] = field(default_factory=dict)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)  # weight name -> its Constant node
    inputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)  # without initializers
    outputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)


def outer_reads(graph: onnx.GraphProto) -> set[str]:
    """Names that a subgraph (and its own subgraphs) reads from the scopes around it."""
    known = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    known.update(s.values.name for s in graph.sparse_initializer)
    reads: set[str] = set()
    for node in graph.node:
        reads.update(name for name in node_reads(node) if name not in known)
        known.update(node.output)
    reads.update(o.name for o in graph.output if o.name not in known)
    return reads


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the attributes of ``node`` (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def node_reads(node: onnx.NodeProto) -> list[str]:
    """All value names that ``node`` needs: its inputs and what its subgraphs read from outside."""
    names = [name for name in node.input if name]
    for graph in subgraphs(node):
        names.extend(sorted(outer_reads(graph)))
    return names


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the tensor of a ``Constant`` node that holds one, else None."""
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.HasField("t"):
                tensor: onnx.TensorProto = attribute.t
                return tensor
    return None


def label(node: onnx.NodeProto) -> str:
    """Return how messages name a node: its name, else its type and first output."""
    return node.name or f"{node.op_type}({next((o for o in node.output if o), '')})"


class Model:
    """An ONNX model and its index; change weights with :meth:`set_array`, then save it.

    Attributes:
        proto: the whole model, all tensor data inline.
        path: the file it came from, or None.
        external: locations (file names) of external data that the file used; empty when inline.
    """

    def __init__(
        self, proto: onnx.ModelProto, path: Path | None = None, external: tuple[str, ...] = ()
    ) -> None:
        self.proto = proto
        self.path = path
        self.external = external
        self.reindex()

    @property
    def graph(self) -> onnx.GraphProto:
        """The main graph."""
        return self.proto.graph

    @property
    def opset(self) -> int:
        """Version of the default ONNX domain (0 when the model imports none)."""
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 0)

    @property
    def name(self) -> str:
        """What messages call the model: its file name, else the graph's name."""
        return self.path.name if self.path else (self.graph.name or "model")

    def reindex(self) -> None:
        """Rebuild :attr:`index`; call it after nodes or initializers were added or removed."""
        index = GraphIndex()
        for tensor in self.graph.initializer:
            index.tensors[tensor.name] = tensor
        for position, node in enumerate(self.graph.node):
            for output in node.output:
                if output:
                    index.producer[output] = position
            tensor = constant_tensor(node)
            if tensor is not None and node.output and node.output[0]:
                index.tensors[node.output[0]] = tensor
                index.constants[node.output[0]] = position
            for slot, name in enumerate(node.input):
                if name:
                    index.uses.setdefault(name, []).append(Use(position, slot))
            for graph in subgraphs(node):
                for name in sorted(outer_reads(graph)):
                    index.uses.setdefault(name, []).append(Use(position, -1))
        constant = index.tensors.keys() | {s.values.name for s in self.graph.sparse_initializer}
        index.inputs = {i.name: i for i in self.graph.input if i.name not in constant}
        index.outputs = {o.name: o for o in self.graph.output}
        self.index = index

    def _tensor(self, name: str) -> onnx.TensorProto:
        tensor = self.index.tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.name}: no weight named {name!r}")
        return tensor

    def array(self, name: str) -> NDArray[np.generic]:
        """Return weight ``name`` in its stored shape and dtype (bfloat16 as ``ml_dtypes.bfloat16``).

        The array is a copy and may be read-only; changes go through :meth:`set_array`.

        Raises:
            ModelError: when there is no such weight or its data does not match its shape.
        """
        try:
            return numpy_helper.to_array(self._tensor(name))
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{self.name}: weight {name!r} cannot be read: {error}") from error

    def set_array(self, name: str, array: NDArray[np.generic]) -> None:
        """Replace the values of weight ``name``; shape and dtype must stay as they are.

        protobuf keeps the memory of the old value until the whole proto is released. Set each weight
        once; :meth:`copy` gives a model without such leftovers.

        Raises:
            ModelError: when there is no such weight, or shape or dtype differ.
        """
        tensor = self._tensor(name)
        shape, dtype = tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"{self.name}: weight {name!r} holds strings, wanted numbers")
        if array.shape != shape or array.dtype != dtype:
            raise ModelError(
                f"{self.name}: weight {name!r} is {dtype}{list(shape)}, "
                f"the new value is {array.dtype}{list(array.shape)}"
            )
        fresh = numpy_helper.from_array(np.ascontiguousarray(array)).raw_data
        for field_name in TYPED_FIELDS:
            tensor.ClearField(field_name)
        tensor.raw_data = fresh

    def copy(self) -> Model:
        """Return an independent copy."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return Model(proto, self.path, self.external)

    def to_bytes(self) -> bytes:
        """Serialise with all data inline.

        Raises:
            ModelError: when the model is over protobuf's 2 GiB limit; save it with external data instead.
        """
        # An estimate first: ByteSize serialises everything, which may be far more than 2 GiB
        if estimated_bytes(self.proto) <= MAX_PROTO_BYTES:
            data: bytes = self.proto.SerializeToString()
            if len(data) <= MAX_PROTO_BYTES:
                return data
        raise ModelError(f"{self.name}: over 2 GiB, cannot be serialised in one piece")


def only_reader(model: Model, value: str) -> onnx.NodeProto | None:
    """Return the one node that reads ``value`` as a direct input, else None."""
    uses = model.index.uses.get(value, [])
    if len(uses) != 1 or uses[0].slot < 0 or value in model.index.outputs:
        return None
    reader: onnx.NodeProto = model.graph.node[uses[0].index]
    return reader


def needed_nodes(model: Model, feeds: Collection[str], outputs: Iterable[str]) -> tuple[list[int], set[str]]:
    """Walk back from ``outputs`` and stop at ``feeds``.

    Returns:
        The positions of the nodes to run, in graph order, and every value name that is read.
    """
    producer, nodes = model.index.producer, model.graph.node
    reads, todo = set(outputs), list(outputs)
    found: set[int] = set()
    while todo:
        position = producer.get(name) if (name := todo.pop()) not in feeds else None
        if position is None or position in found:
            continue
        found.add(position)
        fresh = set(node_reads(nodes[position])) - reads
        reads |= fresh
        todo.extend(fresh)
    return sorted(found), reads
