"""What a storage form is: the contract that one file under ``storage/`` fulfils.

A form turns a dense weight into a few small tensors and back (numpy, the reference), and says the
same decoding once more as standard ONNX nodes. From those nodes :mod:`onnxprune.storage.functions`
makes the model-local functions, so a form knows nothing of MatMul or Conv.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

DOMAIN = "onnxprune"
VERSION = 1  # of the domain; readers refuse a newer one
MIN_IR_VERSION = 8  # the first with model-local functions
# ONNX Runtime folds no node whose output is larger (kDefaultConstantFoldingMaxOutputSizeInBytes).
MAX_FOLDED_BYTES = 2**30

Array = NDArray[Any]  # ml_dtypes.bfloat16 is no np.generic subclass for the type checker


@dataclass(frozen=True)
class Packed:
    """A weight in packed form.

    Attributes:
        tensors: what the file stores, in the order of ``Form.inputs``.
        shape: shape of the dense weight.
        data_type: ``onnx.TensorProto.DataType`` of the dense weight.
    """

    tensors: tuple[Array, ...]
    shape: tuple[int, ...]
    data_type: int

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def cast(self) -> bool:
        """Whether the stored values have another type than the dense weight."""
        return bool(self.tensors[-1].dtype != np_dtype(self.data_type))


class Form(Protocol):
    """One way of storing a weight. Instances live in the table ``onnxprune.storage.FORMS``.

    Attributes:
        name: key in the table.
        prefix: op names are ``prefix + "MatMul"``, ``prefix + "Conv"``, ``prefix + "Decode"``, ...
        inputs: names of the stored tensors; the values, which may be cast, come last.
        attributes: names of attributes (ints) that its ops have besides ``shape`` and ``dtype``.
        attributes_before_11: names of those that they have in models of older opsets only, for the bodies.
        decoders: suffixes of its ops that only decode.
        min_opset: oldest default opset whose ops can decode it.
        load_ns: what decoding costs at load, processor ns a weight, roughly; only for comparing forms.
    """

    name: str
    prefix: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    attributes_before_11: tuple[str, ...]
    decoders: tuple[str, ...]
    min_opset: int
    load_ns: int

    def refusal(self, shape: Sequence[int], data_type: int) -> str:
        """Return why a weight of this shape and type must stay dense, or an empty string."""
        ...

    def encode(self, array: Array, *, values: str) -> Packed:
        """Pack ``array``; ``values`` is ``same`` or ``fp16``."""
        ...

    def extra(self, packed: Packed) -> dict[str, list[int]]:
        """Return the values of ``attributes``."""
        ...

    def extra_before_11(self, packed: Packed, opset: int) -> dict[str, list[int] | onnx.TensorProto]:
        """Return the values of ``attributes_before_11``."""
        ...

    def decode(self, packed: Packed, where: str) -> Array:
        """Return the dense array; ``where`` names the weight in messages.

        Raises:
            ModelError: when the stored tensors contradict each other or the shape.
        """
        ...

    def fits_fused(self, shape: Sequence[int]) -> bool:
        """Whether the fused ops can hold this shape; else only ``decode_op`` can."""
        ...

    def decode_op(self, shape: Sequence[int]) -> str:
        """Return the suffix of the op that decodes a weight of this shape and does nothing else."""
        ...

    def body(self, suffix: str, opset: int, cast: bool, output: str) -> list[onnx.NodeProto]:
        """Return standard nodes from ``inputs`` to the dense weight ``output``.

        They may use the value ``shape`` (int64, made from the attribute of that name) and refer to
        ``dtype`` and their own ``attributes`` of the function.
        """
        ...


def np_dtype(data_type: int) -> np.dtype[Any]:
    """Return the numpy (or ml_dtypes) type of an ``onnx.TensorProto.DataType``."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))


def onnx_type(dtype: np.dtype[Any]) -> int:
    """Return the ``onnx.TensorProto.DataType`` of a numpy (or ml_dtypes) type."""
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def round_to_fp16(array: Array) -> Array:
    """Return ``array`` as float16, or as it is when a finite element would become infinite."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = array.astype(np.float16)
    return rounded if np.array_equal(np.isfinite(rounded), np.isfinite(array)) else array
