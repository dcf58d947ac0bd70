"""Storage form ``bitmap``: one bit a weight, and the weights that are not zero. Version 1.

The weight is read in the order of its stored tensor (row-major), as n elements:

``mask``
    uint8, shape ``(ceil(n / 8),)``. Element ``i`` is bit ``7 - i % 8`` of byte ``i // 8``
    (``numpy.packbits`` order, most significant bit first). Set: not zero. The bits behind element
    n - 1 are clear.
``values``
    shape ``(1 + number of set bits,)``. Element 0 is zero: what a clear bit reads. Behind it the
    nonzero weights in order; their type is the weight's, or float16 when the weight is float32 or
    float64 and was packed with ``values="fp16"``.
attribute ``shape`` (ints)
    shape of the dense weight. Never to be trusted over the sizes of the tensors.
attribute ``dtype`` (int)
    ``onnx.TensorProto.DataType`` of the dense weight.
attribute ``shape_tensor`` (tensor, int64)
    ``shape`` once more, only in models of opsets 7 to 11, whose ``Constant`` has no ``value_ints``.
attributes ``starts``, ``filler``, ``pieces``
    only in models of opsets 7 to 10: the sums of the set bits of bytes, see
    :mod:`onnxprune.storage.prefix_sum`.
attribute ``cut`` (ints)
    only there: ``[n, p]``, elements and bits of padding.

-0.0 counts as zero and comes back as 0.0. NaN and infinities are values like any other.
Size at 70 % zeros: 0.331 of dense float32, 0.181 with ``values="fp16"``, however the zeros lie.

Decoding in standard ONNX, folded at load by stock ONNX Runtime (``Bitmap.body``): a table turns each
byte into 8 bits, their running count is the slot of each weight in ``values``, and ``slot * bit`` sends
clear bits to slot 0. What counts there is memory, not arithmetic: ONNX Runtime keeps every
intermediate of constant folding until the pass ends, so each costs its page faults. Hence bits stay
uint8 until the count (22 bytes a weight in all), and ``GatherElements``, which needs one more reshape
than ``Gather`` but takes 1.5 ns instead of 5.5 ns a weight. Nodes cost 50 us each whatever the size.

Tried on ONNX Runtime 1.31.1, 36 MatMul like MiniLM's at 70 %, processor ns a weight over the dense load
(best of 18 interleaved loads, 1 thread; a page fault takes 2.6 us on that machine): this body 16.8;
with int32 bits 18.3; start of each byte, table of positions, GatherElements 16.5 but more nodes; the
same with Gather 18.9; form gaps4 7.5. Compress, NonZero and what else has a data-dependent shape are
not folded, neither is any node whose output is over 1 GiB.

Opsets 7 to 10 have neither CumSum nor GatherElements. There the sums are those of bytes, a table has the
place of each bit in its byte's sum, and the rest is the same. It takes 30 ns a weight where the body above
takes 14 (``scripts/bench_storage.py --form bitmap --opset 10``), 21 of them in Gather on that machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.files.tensors import type_name
from onnxprune.storage import prefix_sum
from onnxprune.storage.body import constant, given, given_tensor
from onnxprune.storage.form import MAX_FOLDED_BYTES, Array, Packed, np_dtype, onnx_type, round_to_fp16

RAGGED = "DecodeRagged"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)  # (256, 8): of each byte
_COUNTS = _BITS.sum(axis=1, dtype=np.uint8)
_FP16_FROM = (TensorProto.FLOAT, TensorProto.DOUBLE)  # 16-bit types gain nothing


class Bitmap:
    """The form ``bitmap``; the module's text is its specification."""

    name = "bitmap"
    prefix = "Bitmap"
    inputs: tuple[str, ...] = ("mask", "values")
    attributes: tuple[str, ...] = ()
    attributes_before_11: tuple[str, ...] = (*prefix_sum.ATTRIBUTES, "cut")
    decoders: tuple[str, ...] = ("Decode", RAGGED)
    min_opset = prefix_sum.MIN_OPSET
    load_ns = 20

    def refusal(self, shape: Sequence[int], data_type: int) -> str:
        """Return why a weight of this shape and type must stay dense, or an empty string."""
        if data_type not in _FLOATS:
            return f"holds {type_name(data_type)}, packed storage is for floating point"
        widest = max(4, np_dtype(data_type).itemsize)  # the running count is int32
        if math.prod(shape) * widest > MAX_FOLDED_BYTES:
            return "too large: ONNX Runtime folds no intermediate over 1 GiB"
        return ""

    def encode(self, array: Array, *, values: str = "same") -> Packed:
        """Pack ``array`` (any shape; float16/32/64 or bfloat16).

        Args:
            array: the dense weight.
            values: ``fp16`` rounds float32 and float64 to float16, unless a finite value would become
                infinite; ``same`` keeps the type. Other types are always kept.
        """
        data_type = onnx_type(array.dtype)
        flat = array.reshape(-1)
        if values == "fp16" and data_type in _FP16_FROM:
            flat = round_to_fp16(flat)
        with np.errstate(invalid="ignore"):  # ml_dtypes raises the flag for NaN
            keep = flat != 0
        return Packed(
            (np.packbits(keep), np.concatenate([np.zeros(1, flat.dtype), flat[keep]])), array.shape, data_type
        )

    def extra(self, packed: Packed) -> dict[str, list[int]]:
        """Return no attributes."""
        return {}

    def extra_before_11(self, packed: Packed, opset: int) -> dict[str, list[int] | onnx.TensorProto]:
        """Return the sums of bytes, and how many of the bits are elements."""
        mask, count = packed.tensors[0], math.prod(packed.shape)
        return {**prefix_sum.values(_COUNTS[mask][None], opset), "cut": [count, 8 * mask.size - count]}

    def decode(self, packed: Packed, where: str = "the weight") -> Array:
        """Return the dense array of shape ``packed.shape``.

        Raises:
            ModelError: when sizes, types, the number of set bits, the padding or slot 0 are wrong.
        """
        keep, values = self._checked(packed, where)
        dense = np.zeros(keep.size, np_dtype(packed.data_type))
        dense[keep] = values[1:].astype(dense.dtype, copy=False)
        return dense.reshape(packed.shape)

    def _checked(self, packed: Packed, where: str) -> tuple[Array, Array]:
        """Return the mask as bool ``(n,)`` and the values, known to fit the shape and each other."""
        if packed.data_type not in _FLOATS:
            raise ModelError(f"{where} has dtype {packed.data_type}, wanted a floating point type")
        if any(dim < 0 for dim in packed.shape):
            raise ModelError(f"{where} has shape {list(packed.shape)} with a negative dimension")
        mask, values = packed.tensors
        dtype, count = np_dtype(packed.data_type), math.prod(packed.shape)
        if mask.dtype != np.uint8 or mask.shape != ((count + 7) // 8,):
            raise ModelError(
                f"mask of {where} is {mask.dtype}{list(mask.shape)}, "
                f"shape {list(packed.shape)} needs uint8[{(count + 7) // 8}]"
            )
        allowed = {dtype} | ({np.dtype(np.float16)} if packed.data_type in _FP16_FROM else set())
        if values.dtype not in allowed or values.ndim != 1:
            raise ModelError(
                f"values of {where} are {values.dtype}{list(values.shape)}, wanted {dtype}, one axis"
            )
        bits = np.unpackbits(mask).view(np.bool_)
        if bits[count:].any():
            raise ModelError(f"mask of {where} has bits set behind its last element")
        nonzeros = int(np.count_nonzero(bits))
        if values.size != 1 + nonzeros:
            raise ModelError(f"{where} has {values.size - 1} values, its mask has {nonzeros} bits set")
        if values[0] != 0:
            raise ModelError(f"values of {where} begin with {values[0]}, wanted 0")
        return bits[:count], values

    def fits_fused(self, shape: Sequence[int]) -> bool:
        """Whole bytes only: cutting the padding off takes one more node, see ``DecodeRagged``."""
        return math.prod(shape) % 8 == 0

    def decode_op(self, shape: Sequence[int]) -> str:
        """Return ``Decode``, or ``DecodeRagged`` when the mask ends with padding."""
        return "Decode" if self.fits_fused(shape) else RAGGED

    def body(self, suffix: str, opset: int, cast: bool, output: str) -> list[onnx.NodeProto]:
        """Return the decoding nodes; ``cast`` widens the values to the attribute ``dtype`` first."""
        node = helper.make_node
        old = opset < prefix_sum.CUMSUM_OPSET
        nodes = _slots_of_bytes(suffix == RAGGED, opset) if old else _slots_of_bits(suffix == RAGGED, opset)
        if cast:
            nodes.append(given("Cast", ["values"], "wide", to=("dtype", AttributeProto.INT)))
        return [
            *nodes,
            node(
                "Gather" if old else "GatherElements",
                ["wide" if cast else "values", "slot"],
                ["weights"],
                axis=0,
            ),
            node("Reshape", ["weights", "shape"], [output]),
        ]


def _slots_of_bits(ragged: bool, opset: int) -> list[onnx.NodeProto]:
    """Return nodes from ``mask`` to ``slot`` (int32, (n,)): where in ``values`` each weight is."""
    node = helper.make_node
    nodes = [
        *constant("table", _BITS, opset),
        *constant("flat", np.array([-1], np.int64), opset),
        *constant("axis", np.array(0, np.int32), opset),
        node("Cast", ["mask"], ["byte"], to=TensorProto.INT32),
        node("Gather", ["table", "byte"], ["bits_of_byte"], axis=0),  # (bytes, 8)
        node("Reshape", ["bits_of_byte", "flat"], ["padded" if ragged else "bits"]),
    ]
    if ragged:
        nodes += [
            *constant("zero", np.array([0], np.int64), opset),
            node("ReduceProd", ["shape"], ["size"], keepdims=1),
            node("Slice", ["padded", "zero", "size"], ["bits"]),
        ]
    return [
        *nodes,
        node("Cast", ["bits"], ["bit"], to=TensorProto.INT32),
        node("CumSum", ["bit", "axis"], ["count"]),
        node("Mul", ["count", "bit"], ["slot"]),
    ]


def _slots_of_bytes(ragged: bool, opset: int) -> list[onnx.NodeProto]:
    """Return the same without the ops of opset 11, ``slot`` has shape (bytes, 8), or (n,) when it is cut."""
    node = helper.make_node
    to_end = _BITS.cumsum(axis=1, dtype=np.int8) - _COUNTS[:, None].astype(np.int8)  # -7 to 0
    nodes = [
        *constant("bits_of", _BITS, opset, np.int32),
        *constant("to_end_of", to_end, opset, np.int32),
        *constant("count_of", _COUNTS.astype(np.float32), opset),
        *constant("column", np.array([-1, 1], np.int64), opset),
        *given_tensor("starts", "row_start", np.int32, opset),
        *prefix_sum.rows("mask", "rows", opset),
        node("Cast", ["rows"], ["byte_in_row"], to=TensorProto.INT32),
        node("Gather", ["count_of", "byte_in_row"], ["count"], axis=0),
        *prefix_sum.sums("count", "row_start", "end", "column", axis=0),
        node("Cast", ["mask"], ["byte"], to=TensorProto.INT32),
        node("Gather", ["to_end_of", "byte"], ["to_end"], axis=0),  # (bytes, 8)
        node("Add", ["to_end", "end"], ["count_to_bit"]),
        node("Gather", ["bits_of", "byte"], ["bit"], axis=0),
        node("Mul", ["count_to_bit", "bit"], ["slots" if ragged else "slot"]),
    ]
    if ragged:
        nodes += [
            *constant("flat", np.array([-1], np.int64), opset),
            node("Reshape", ["slots", "flat"], ["padded"]),
            given("Split", ["padded"], "slot", "behind", axis=0, split=("cut", AttributeProto.INTS)),
        ]
    return nodes
