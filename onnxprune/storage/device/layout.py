"""What a device layout is: the contract that one file under ``storage/device/`` fulfils."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.storage.form import MAX_FOLDED_BYTES, Array, np_dtype, onnx_type

TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)  # of activations and weights
STRIP = 16  # rows of W that a warp multiplies: mma.m16n8k16
GROUP = 128  # columns that it takes at a time
MIN_OPSET = 13  # bfloat16; Slice and Squeeze as they are now


class Layout(Protocol):
    """One way of storing a weight ``W (N, K)``, rows are outputs. Instances live in ``LAYOUTS``.

    Attributes:
        name: key in the table.
        prefix: its ops are ``prefix`` + ``MatMul`` or ``Conv`` + an activation; also the name of its kernel.
        inputs: names of the stored tensors. The values, whose tensor keeps the weight's name, come last
            but for ``scales``.
        block_rows: rows of a block, 0 where there are none.
        exact: whether :meth:`decode` gives back what was encoded, bit for bit.
    """

    name: str
    prefix: str
    inputs: tuple[str, ...]
    block_rows: int
    exact: bool

    def refusal(self, weight: Array) -> str:
        """Return why ``weight`` (N, K), float16 or bfloat16, cannot be stored so, or an empty string."""
        ...

    def encode(self, weight: Array) -> tuple[Array, ...]:
        """Return the tensors of ``weight`` (N, K), float16 or bfloat16, in the order of ``inputs``."""
        ...

    def decode(self, tensors: Sequence[Array], shape: tuple[int, int], data_type: int, where: str) -> Array:
        """Return ``W (N, K)``.

        Args:
            tensors: in the order of ``inputs``.
            shape: (N, K).
            data_type: ``onnx.TensorProto.FLOAT16`` or ``BFLOAT16``.
            where: names the weight in messages.

        Raises:
            ModelError: when the tensors contradict each other or the shape.
        """
        ...

    def extra(self, rows: int, cols: int) -> Mapping[str, list[int]]:
        """Return ints that :meth:`body` reads as values of these names; attributes of the node."""
        ...

    def body(self) -> list[onnx.NodeProto]:
        """Return standard nodes from ``inputs`` to ``W`` of shape (K, N), as MatMul of ONNX wants it.

        They may read the value ``shape``, int64 [K, N], and those that ``extra`` names, and refer to the
        attribute ``dtype`` of the function.
        """
        ...


def ceil_to(count: int, step: int) -> int:
    """Return ``count`` rounded up to a multiple of ``step``."""
    return -(-count // step) * step


def padded(weight: Array, row_step: int, col_step: int) -> Array:
    """Return ``weight`` (N, K) with zeros behind, up to multiples of the steps."""
    rows, cols = weight.shape
    return np.pad(weight, ((0, ceil_to(rows, row_step) - rows), (0, ceil_to(cols, col_step) - cols)))


def common_refusal(weight: Array, row_step: int, col_step: int) -> str:
    """Return why no layout can hold ``weight``: its type, its shape or its size."""
    if weight.ndim != 2 or not weight.size:
        return f"has shape {list(weight.shape)}, wanted two dimensions and some elements"
    if onnx_type(weight.dtype) not in TYPES:
        return f"holds {weight.dtype}, the CUDA kernels take float16 and bfloat16"
    if max(weight.shape) > 2**20:  # kMaxSide of ort_ops/cuda/common.cuh
        return "has more than 2**20 rows or columns"
    if ceil_to(weight.shape[0], row_step) * ceil_to(weight.shape[1], col_step) * 4 > MAX_FOLDED_BYTES:
        return "too large: ONNX Runtime folds no intermediate over 1 GiB"
    return ""


def check_shape(shape: Sequence[int], data_type: int, where: str) -> None:
    """Raise ModelError unless the shape and type are those of a weight that some layout can hold."""
    if len(shape) != 2 or min(shape) < 1 or max(shape) > 2**20 or data_type not in TYPES:
        raise ModelError(f"{where} has shape {list(shape)} and dtype {data_type}, which no CUDA op has")


def check_tensor(array: Array, dtype: Any, shape: Sequence[int], what: str, where: str) -> None:
    """Raise ModelError unless ``array`` has this type and shape."""
    wanted = np.dtype(dtype)
    if array.dtype != wanted or list(array.shape) != list(shape):
        raise ModelError(
            f"{what} of {where} is {array.dtype}{list(array.shape)}, wanted {wanted}{list(shape)}"
        )


def check_values(array: Array, data_type: int, unit: int, where: str) -> None:
    """Raise ModelError unless ``array`` is a vector of the weight's type, a multiple of ``unit`` long."""
    if array.dtype != np_dtype(data_type) or array.ndim != 1 or array.size % unit or not array.size:
        raise ModelError(
            f"values of {where} are {array.dtype}{list(array.shape)}, wanted {np_dtype(data_type)}, "
            f"a multiple of {unit}"
        )


def constant(name: str, values: Any, dtype: Any = np.int64) -> onnx.NodeProto:
    """Return a ``Constant`` node."""
    return helper.make_node(
        "Constant", [], [name], value=numpy_helper.from_array(np.array(values, dtype), "")
    )


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node of the default domain with one output."""
    made: onnx.NodeProto = helper.make_node(op_type, list(inputs), [output], **attributes)
    return made


def cast_to_weight(value: str, output: str) -> onnx.NodeProto:
    """Return a ``Cast`` to the type that the function's attribute ``dtype`` names."""
    made = node("Cast", [value], output)
    made.attribute.add(name="to", ref_attr_name="dtype", type=onnx.AttributeProto.INT)
    return made


def cut(value: str, output: str) -> list[onnx.NodeProto]:
    """Return nodes that cut the padding off a matrix (K or more, N or more)."""
    return [constant("origin", [0, 0]), node("Slice", [value, "origin", "shape"], output)]


Bits = NDArray[np.bool_]
