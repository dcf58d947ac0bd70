"""ONNX element types as torch types, and tensor protos as torch tensors."""

from __future__ import annotations

import math

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune.finetune.registry import Unsupported

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
FLOAT8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})
# Narrow types as the smallest torch type that holds their values: enough to read them, not to make them.
STORED: dict[int, torch.dtype] = {
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8,
    TensorProto.FLOAT4E2M1: torch.float32,
    TensorProto.FLOAT8E8M0: torch.float32,
}
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
# Attributes whose number is an element type.
DTYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "stash_type", "softmax_precision"})


def torch_dtype(code: int) -> torch.dtype:
    """Return the torch type of an ONNX element type.

    Raises:
        Unsupported: when torch has none.
    """
    dtype = DTYPES.get(code)
    if dtype is None:
        name = TensorProto.DataType.Name(code) if code in TensorProto.DataType.values() else str(code)
        raise Unsupported(f"element type {name} has no counterpart in torch")
    return dtype


def widened(code: int) -> int:
    """Return float32 for the half-precision types, any other type as it is."""
    return int(TensorProto.FLOAT) if code in HALVES else code


def torch_tensor(tensor: onnx.TensorProto, *, widen: bool = True) -> torch.Tensor:
    """Convert a tensor proto; the result owns its memory.

    Args:
        tensor: with its data inline.
        widen: half-precision floats become float32.

    Raises:
        Unsupported: when torch has no such element type or the data does not fit the shape.
    """
    code = tensor.data_type
    dtype = STORED.get(code) or torch_dtype(widened(code) if widen else code)
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise Unsupported(f"tensor {tensor.name!r} cannot be read: {error}") from error
    if code in STORED or (widen and code in HALVES):
        return torch.from_numpy(array.astype(str(dtype).removeprefix("torch.")))
    return _from_numpy(array, dtype)


def _from_numpy(array: NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    flat = np.array(array, order="C")  # a copy: writable, and the proto may go away
    if flat.dtype.isbuiltin == 1:
        return torch.from_numpy(flat)
    storage = {1: np.uint8, 2: np.uint16}[flat.dtype.itemsize]  # types that numpy knows from ml_dtypes only
    return torch.from_numpy(flat.view(storage)).view(dtype)


def sparse_tensor(sparse: onnx.SparseTensorProto, *, widen: bool = True) -> torch.Tensor:
    """Convert a sparse tensor proto to a dense tensor (indices linear or by coordinate)."""
    values = torch_tensor(sparse.values, widen=widen)
    indices = torch_tensor(sparse.indices)
    shape = tuple(sparse.dims)
    dense = torch.zeros(shape, dtype=values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.view(-1)[indices] = values
    return dense


def to_float8(x: torch.Tensor, dtype: torch.dtype, saturate: bool) -> torch.Tensor:
    """Round to an 8-bit float; what is too large becomes the largest value, or else infinity or NaN."""
    largest = torch.finfo(dtype).max
    if saturate:
        return x.clamp(-largest, largest).to(dtype)
    halfway = largest * (1 + torch.finfo(dtype).eps / 4)  # rounds down to the largest value up to here
    infinite = math.inf if dtype == torch.float8_e5m2 else math.nan
    return torch.where(x.abs() > halfway, torch.copysign(x.new_tensor(infinite), x), x).to(dtype)
