"""Tensors as the file states them: where they are, how many bytes they must have, and whether they do.

Nothing here allocates what a shape promises: all sizes are computed from ``dims`` as Python
integers and compared with the bytes that are really there. The layout of each data type is the one
of ``TensorProto`` in ``onnx.proto``. ``onnx.checker`` is no substitute: it accepts negative offsets,
too-short files and shapes of 10**18 elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.errors import ModelError

MAX_RANK = 32  # numpy 1 stops at 32 axes; real models stay below 10
MAX_DEPTH = 24  # nested subgraphs; protobuf itself stops at 32, ONNX Runtime recurses per level
MAX_BYTES = 2**63 - 1  # sizes are int64 in ONNX and in every runtime

# Type -> (bits per element, field that holds the elements when raw_data does not). By name, since
# not every supported onnx release knows all of them.
_LAYOUT = {
    "FLOAT": (32, "float_data"),
    "DOUBLE": (64, "double_data"),
    "FLOAT16": (16, "int32_data"),
    "BFLOAT16": (16, "int32_data"),
    "COMPLEX64": (64, "float_data"),
    "COMPLEX128": (128, "double_data"),
    "INT8": (8, "int32_data"),
    "INT16": (16, "int32_data"),
    "INT32": (32, "int32_data"),
    "INT64": (64, "int64_data"),
    "UINT8": (8, "int32_data"),
    "UINT16": (16, "int32_data"),
    "UINT32": (32, "uint64_data"),
    "UINT64": (64, "uint64_data"),
    "BOOL": (8, "int32_data"),
    "STRING": (0, "string_data"),
    "FLOAT8E4M3FN": (8, "int32_data"),
    "FLOAT8E4M3FNUZ": (8, "int32_data"),
    "FLOAT8E5M2": (8, "int32_data"),
    "FLOAT8E5M2FNUZ": (8, "int32_data"),
    "FLOAT8E8M0": (8, "int32_data"),
    "FLOAT6E2M3": (6, "int32_data"),
    "FLOAT6E3M2": (6, "int32_data"),
    "FLOAT4E2M1": (4, "int32_data"),
    "INT4": (4, "int32_data"),
    "UINT4": (4, "int32_data"),
    "INT2": (2, "int32_data"),
    "UINT2": (2, "int32_data"),
}
LAYOUT: dict[int, tuple[int, str]] = {
    number: _LAYOUT[name] for name, number in TensorProto.DataType.items() if name in _LAYOUT
}
TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


class Found(NamedTuple):
    """A tensor of the model: how messages name it, itself, and whether it is a plain initializer."""

    where: str
    tensor: TensorProto
    is_initializer: bool


class FoundSparse(NamedTuple):
    """A sparse tensor of the model; its ``values`` and ``indices`` are listed as tensors as well."""

    where: str
    tensor: onnx.SparseTensorProto


def show(name: object) -> str:
    """Return ``name`` quoted for a message: control characters escaped, at most 80 characters."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:30]}...{text[-47:]}"  # the end of a path says more


def walk(proto: onnx.ModelProto) -> Iterator[Found | FoundSparse]:
    """Yield every tensor of the model: graphs, subgraphs, attributes, functions, training info.

    Raises:
        ModelError: when subgraphs are nested deeper than ``MAX_DEPTH``.
    """
    yield from _of_graph(proto.graph, "", 0)
    for function in proto.functions:
        inside = f" in function {show(function.name)}"
        yield from _of_nodes(function.node, inside, 0)
        yield from _of_attributes(function.attribute_proto, f"the defaults{inside}", inside, 0)
    for training in proto.training_info:
        yield from _of_graph(training.initialization, " in training_info", 0)
        yield from _of_graph(training.algorithm, " in training_info", 0)


def _of_graph(graph: onnx.GraphProto, inside: str, depth: int) -> Iterator[Found | FoundSparse]:
    if depth > MAX_DEPTH:
        raise ModelError(f"subgraphs are nested more than {MAX_DEPTH} deep{inside}")
    for tensor in graph.initializer:
        yield Found(f"initializer {show(tensor.name)}{inside}", tensor, True)
    for sparse in graph.sparse_initializer:
        yield from _of_sparse(f"sparse initializer {show(sparse.values.name)}{inside}", sparse)
    yield from _of_nodes(graph.node, inside, depth)


def _of_nodes(nodes: Iterable[onnx.NodeProto], inside: str, depth: int) -> Iterator[Found | FoundSparse]:
    for node in nodes:
        if node.attribute:
            yield from _of_attributes(node.attribute, f"{describe(node)}{inside}", inside, depth)


def _of_attributes(
    attributes: Iterable[onnx.AttributeProto], owner: str, inside: str, depth: int
) -> Iterator[Found | FoundSparse]:
    for attribute in attributes:
        if attribute.type in _PLAIN_ATTRIBUTES and not _has_payload(attribute):
            continue
        where = f"attribute {show(attribute.name)} of {owner}"
        if attribute.HasField("t"):
            yield Found(where, attribute.t, False)
        for tensor in attribute.tensors:
            yield Found(where, tensor, False)
        if attribute.HasField("sparse_tensor"):
            yield from _of_sparse(where, attribute.sparse_tensor)
        for sparse in attribute.sparse_tensors:
            yield from _of_sparse(where, sparse)
        # ``owner`` already ends with ``inside``: one level is enough to find the place
        inner = f" in a subgraph of {owner.removesuffix(inside)}"
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g, inner, depth + 1)
        for graph in attribute.graphs:
            yield from _of_graph(graph, inner, depth + 1)


_A = onnx.AttributeProto
_PLAIN_ATTRIBUTES = frozenset((_A.FLOAT, _A.INT, _A.STRING, _A.FLOATS, _A.INTS, _A.STRINGS))


def _has_payload(attribute: onnx.AttributeProto) -> bool:
    """Whether an attribute declared as plain numbers or text hides tensors or graphs."""
    return bool(
        attribute.HasField("t")
        or attribute.HasField("g")
        or attribute.HasField("sparse_tensor")
        or attribute.tensors
        or attribute.graphs
        or attribute.sparse_tensors
    )


def _of_sparse(where: str, sparse: onnx.SparseTensorProto) -> Iterator[Found | FoundSparse]:
    yield Found(f"values of {where}", sparse.values, False)
    yield Found(f"indices of {where}", sparse.indices, False)
    yield FoundSparse(where, sparse)


def describe(node: onnx.NodeProto) -> str:
    """Return how messages name a node: by its name, else by its first output."""
    if node.name:
        return f"node {show(node.name)} ({node.op_type})"
    output = next((o for o in node.output if o), "")
    return f"the {node.op_type} node that makes {show(output)}"


def type_name(data_type: int) -> str:
    """Return the ONNX name of a data type number, or the number itself."""
    names: dict[int, str] = {number: name for name, number in TensorProto.DataType.items()}
    return names.get(data_type, str(data_type))


def elements(dims: Iterable[int], where: str) -> int:
    """Return the number of elements of a shape.

    Raises:
        ModelError: for a negative dimension, too many of them, or a product beyond int64. Zeros do
            not hide the other dimensions: ``[0, 2**62, 2**62]`` overflows in every runtime.
    """
    shape = list(dims)
    if len(shape) > MAX_RANK:
        raise ModelError(f"{where} has {len(shape)} dimensions, wanted at most {MAX_RANK}")
    product = 1
    for dim in shape:
        if dim < 0:
            raise ModelError(f"{where} has shape {shape} with a negative dimension")
        product *= dim or 1
    if product * 16 > MAX_BYTES:  # 16 bytes: the widest type
        raise ModelError(f"{where} has shape {shape}, more bytes than 64 bits can count")
    return 0 if 0 in shape else product


def byte_size(tensor: TensorProto, where: str) -> int:
    """Return the bytes that the shape and type of ``tensor`` ask for; 0 for strings.

    Raises:
        ModelError: for an unknown type or an impossible shape.
    """
    layout = LAYOUT.get(tensor.data_type)
    if layout is None:
        raise ModelError(f"{where} has unknown data type {tensor.data_type}")
    return (elements(tensor.dims, where) * layout[0] + 7) // 8


def check_inline(tensor: TensorProto, where: str) -> None:
    """Check that the data inside ``tensor`` is what its shape and type ask for.

    Raises:
        ModelError: when it is not, also when it is split in segments or stored twice.
    """
    size = byte_size(tensor, where)
    if tensor.HasField("segment"):
        raise ModelError(f"{where} is split in segments, which no runtime reads")
    field = LAYOUT[tensor.data_type][1]
    filled = [name for name in TYPED_FIELDS if len(getattr(tensor, name))]
    kind = f"{type_name(tensor.data_type)}{list(tensor.dims)}"
    if tensor.HasField("raw_data"):
        if filled:
            raise ModelError(f"{where} holds its data twice: in raw_data and in {filled[0]}")
        if tensor.data_type == TensorProto.STRING:
            raise ModelError(f"{where} has strings in raw_data, wanted string_data")
        if len(tensor.raw_data) != size:
            raise ModelError(f"{where} holds {len(tensor.raw_data)} bytes, {kind} needs {size}")
        return
    if any(name != field for name in filled):
        raise ModelError(f"{where} is {kind} but has data in {', '.join(filled)}, wanted {field}")
    entries, wanted = len(getattr(tensor, field)), _typed_entries(tensor, where)
    if entries != wanted:
        raise ModelError(f"{where} holds {entries} values in {field}, {kind} needs {wanted}")


def _typed_entries(tensor: TensorProto, where: str) -> int:
    count = elements(tensor.dims, where)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    bits = LAYOUT[tensor.data_type][0]
    if bits in (2, 4):  # packed into bytes, one byte an entry; 6-bit types are not
        return (count * bits + 7) // 8
    return count


def raw_bytes(tensor: TensorProto) -> bytes:
    """Return the data of an inline numeric tensor in ``raw_data`` layout, also from typed fields."""
    if tensor.HasField("raw_data"):
        data: bytes = tensor.raw_data
        return data
    fresh: bytes = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    return fresh


def check_sparse(sparse: onnx.SparseTensorProto, where: str) -> None:
    """Check a sparse tensor in COO form (``SparseTensorProto``): all of its data must be inline by now.

    Raises:
        ModelError: when values and indices do not fit together or point outside the dense shape.
    """
    total = elements(sparse.dims, where)
    rank = len(sparse.dims)
    count = elements(sparse.values.dims, f"values of {where}")
    if len(sparse.values.dims) != 1:
        raise ModelError(f"values of {where} have shape {list(sparse.values.dims)}, wanted one axis")
    shape = list(sparse.indices.dims)
    if count == 0 and elements(shape, f"indices of {where}") == 0:
        return
    if sparse.indices.data_type != TensorProto.INT64 or shape not in ([count], [count, rank]):
        raise ModelError(
            f"indices of {where} are {type_name(sparse.indices.data_type)}{shape}, "
            f"wanted INT64[{count}] or INT64[{count}, {rank}]"
        )
    indices = numpy_helper.to_array(sparse.indices)
    limit = np.array(total if len(shape) == 1 else list(sparse.dims), dtype=np.int64)
    if bool((indices < 0).any()) or bool((indices >= limit).any()):
        raise ModelError(f"indices of {where} point outside its shape {list(sparse.dims)}")


def estimated_bytes(proto: onnx.ModelProto, *, initializers: bool = True) -> int:
    """Return about how many bytes the tensors of ``proto`` take in a file, without reading them.

    Args:
        proto: a model whose tensors were checked, all data inline.
        initializers: False leaves plain initializers out and counts the rest.
    """
    total = 0
    for found in walk(proto):
        if isinstance(found, Found) and (initializers or not found.is_initializer):
            strings = sum(map(len, found.tensor.string_data))
            total += byte_size(found.tensor, found.where) + strings
    return total
