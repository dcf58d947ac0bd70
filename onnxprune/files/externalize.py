"""External data, written: a light copy of the model and one data file with its large tensors.

No location ever comes from the model: there is one file, and its name is ours.
"""

from __future__ import annotations

from typing import BinaryIO

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.files.tensors import byte_size, raw_bytes, show

# Smaller tensors stay in the model, as onnx and torch write it: runtimes need shapes and axes at load.
MIN_EXTERNAL_BYTES = 1024
# Large tensors start on a page, so that runtimes can map them (onnx.proto recommends 4096); the rest
# on a cache line. Two steps, since a page for every small tensor would waste more than it holds.
PAGE_BYTES, LINE_BYTES = 4096, 64
PAGE_ALIGNED_FROM = 2**20


class Splitter:
    """Writes large tensors to a data file and builds the model that refers to it.

    The source is only read: protobuf never frees the old bytes of a field that is set again, so
    taking weights out and putting them back would double the memory. Peak: one tensor.
    """

    def __init__(self, sink: BinaryIO, location: str, *, attributes: bool) -> None:
        """Write to ``sink``, named ``location`` in the model.

        Args:
            sink: an empty binary file.
            location: its name relative to the model.
            attributes: move the tensors of node attributes too (``Constant`` nodes).
        """
        self.sink = sink
        self.location = location
        self.attributes = attributes
        self.position = 0

    def split(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """Return a copy of ``proto`` whose large tensors are in the data file."""
        light = onnx.ModelProto()
        copy_fields(proto, light, skip=("graph", "functions"))
        self._graph(proto.graph, light.graph)
        for function in proto.functions:
            copy = light.functions.add()
            copy_fields(function, copy, skip=("node",))
            for node in function.node:
                self._node(node, copy.node.add())
        return light

    def _graph(self, source: onnx.GraphProto, target: onnx.GraphProto) -> None:
        copy_fields(source, target, skip=("initializer", "node"))
        for node in source.node:
            self._node(node, target.node.add())
        for tensor in source.initializer:
            self._tensor(tensor, target.initializer.add())

    def _node(self, source: onnx.NodeProto, target: onnx.NodeProto) -> None:
        if not any(
            a.HasField("g") or a.graphs or (self.attributes and a.HasField("t")) for a in source.attribute
        ):
            target.CopyFrom(source)
            return
        copy_fields(source, target, skip=("attribute",))
        for attribute in source.attribute:
            copy = target.attribute.add()
            copy_fields(attribute, copy, skip=("g", "graphs", "t"))
            if attribute.HasField("g"):
                self._graph(attribute.g, copy.g)
            for graph in attribute.graphs:
                self._graph(graph, copy.graphs.add())
            if attribute.HasField("t") and self.attributes:
                self._tensor(attribute.t, copy.t)
            elif attribute.HasField("t"):
                copy.t.CopyFrom(attribute.t)

    def _tensor(self, source: TensorProto, target: TensorProto) -> None:
        size = byte_size(source, show(source.name))
        if size < MIN_EXTERNAL_BYTES:
            target.CopyFrom(source)
            return
        target.dims.extend(source.dims)
        target.data_type = source.data_type
        target.metadata_props.extend(source.metadata_props)
        for name in ("name", "doc_string"):
            if source.HasField(name):
                setattr(target, name, _utf8(getattr(source, name)))
        target.data_location = TensorProto.EXTERNAL
        step = PAGE_BYTES if size >= PAGE_ALIGNED_FROM else LINE_BYTES
        padding = -self.position % step
        self.sink.write(bytes(padding))
        data = raw_bytes(source)
        if len(data) != size:
            raise ModelError(f"tensor {show(source.name)} holds {len(data)} bytes, its shape needs {size}")
        self.sink.write(data)
        offset = self.position + padding
        self.position = offset + size
        for key, value in (("location", self.location), ("offset", str(offset)), ("length", str(size))):
            target.external_data.add(key=key, value=value)


def copy_fields(source: Message, target: Message, skip: tuple[str, ...]) -> None:
    """Copy every field that is set, but those in ``skip``."""
    for field, value in source.ListFields():
        if field.name in skip:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, _utf8(value) if field.type == FieldDescriptor.TYPE_STRING else value)


def _utf8(value: str | bytes) -> str:
    # a string field that is not UTF-8 reads as bytes, and can only be copied when it is made valid
    return value.decode(errors="replace") if isinstance(value, bytes) else value
