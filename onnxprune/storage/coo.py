"""ONNX sparse tensors in COO form (``SparseTensorProto``): int64 index and value of every nonzero.

Part of the standard, for the record: 8 bytes of index per float32 value make it larger than dense
below 67 % zeros, float16 below 80 %. Indices are written as one linear position each, ascending
(``indices`` of shape ``(nonzeros,)``); both shapes that the standard allows are read. ONNX Runtime
builds the dense tensor at load. -0.0 counts as zero, as in the packed forms.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.files.tensors import check_inline, check_sparse
from onnxprune.storage.form import Array, np_dtype

MAX_DENSE_BYTES = 2**31 - 1  # what one tensor of a protobuf file can hold


def encode(array: Array, name: str) -> onnx.SparseTensorProto:
    """Return ``array`` (any shape but a scalar) as a sparse tensor called ``name``."""
    flat = array.reshape(-1)
    indices = np.flatnonzero(flat).astype(np.int64)
    sparse: onnx.SparseTensorProto = helper.make_sparse_tensor(
        numpy_helper.from_array(flat[indices], name), numpy_helper.from_array(indices), list(array.shape)
    )
    return sparse


def nbytes(sparse: onnx.SparseTensorProto) -> int:
    """Return the bytes of values and indices."""
    return len(sparse.values.raw_data) + len(sparse.indices.raw_data)


def decode(sparse: onnx.SparseTensorProto, where: str) -> Array:
    """Return the dense array.

    Raises:
        ModelError: when values, indices and shape do not fit, or positions do not ascend.
    """
    check_inline(sparse.values, f"values of {where}")
    check_inline(sparse.indices, f"indices of {where}")
    check_sparse(sparse, where)
    shape, dtype = tuple(sparse.dims), np_dtype(sparse.values.data_type)
    if math.prod(shape) * dtype.itemsize > MAX_DENSE_BYTES:  # a few bytes could ask for any amount of memory
        raise ModelError(f"{where} would take {math.prod(shape) * dtype.itemsize} bytes dense, over 2 GiB")
    dense = np.zeros(math.prod(shape), dtype)
    if sparse.values.dims[0]:
        positions = _linear(numpy_helper.to_array(sparse.indices), shape)
        if bool((np.diff(positions) <= 0).any()):
            raise ModelError(f"indices of {where} do not ascend")
        dense[positions] = numpy_helper.to_array(sparse.values)
    return dense.reshape(shape)


def _linear(indices: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    if indices.ndim == 1:
        return indices
    return np.asarray(np.ravel_multi_index(tuple(indices.T), shape), np.int64)


def densify(graph: onnx.GraphProto) -> list[str]:
    """Replace the sparse constants of a graph (not of its subgraphs) by plain ones; return their names.

    Raises:
        ModelError: when one is broken.
    """
    names = []
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        graph.initializer.append(
            numpy_helper.from_array(decode(sparse, f"sparse initializer {name!r}"), name)
        )
        names.append(name)
    graph.ClearField("sparse_initializer")
    for node in graph.node:
        attribute = sparse_value(node)
        if attribute is not None:
            array = decode(attribute.sparse_tensor, f"sparse_value of constant {node.output[0]!r}")
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))
            names.append(node.output[0])
    return names


def sparse_value(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    """Return the attribute of a ``Constant`` node that holds a sparse tensor, else None."""
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        for attribute in node.attribute:
            if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
                found: onnx.AttributeProto = attribute
                return found
    return None
