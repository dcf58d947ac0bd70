"""Layout ``bitmap-tile``, version 1: one bit a weight and the nonzeros, in tensor-core order.

For unstructured zeros (40 to 80 %) and few rows of X. W (N, K) is cut into strips of 16 rows and groups of
128 columns, both filled up with zeros; a group is 8 steps of 16 columns, each four tiles of 8x8: upper left,
lower left, upper right, lower right (registers 0 to 3 of operand A of ``mma.m16n8k16``, PTX ISA).

``mask``
    uint8, ``strips * groups * 256``. Per group 32 tiles of 8 bytes; byte r is row r of the tile, bit c (least
    significant first) its column c. So lane l of a warp finds its two weights in bits 2 l and 2 l + 1 of 64.
``offsets``
    int32, ``strips * groups + 1``: where the values of each group begin, in units of 16 bytes; the first is
    1, and the last where they end.
``values``
    float16 or bfloat16: 8 zeros, then the nonzeros of each group in the order of its bits, filled up with
    zeros to 16 bytes. ``bitmap-tile-int8``: uint8, the weight over its row's scale, rounded, plus 128; filled
    up with 128.
``scales`` (``bitmap-tile-int8`` only)
    float32, (N,): largest magnitude of the row over 127.

Bits a weight at 70 % zeros: 5.85 with 16-bit values, 3.5 with bytes. Source: SpInfer (Fan et al., EuroSys
2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.storage.device.layout import (
    GROUP,
    STRIP,
    Bits,
    cast_to_weight,
    ceil_to,
    check_shape,
    check_tensor,
    check_values,
    common_refusal,
    constant,
    cut,
    node,
    padded,
)
from onnxprune.storage.form import Array, np_dtype

_ZERO_BYTE = 128  # of weights stored as bytes


class BitmapTile:
    """The layouts ``bitmap-tile`` and ``bitmap-tile-int8``; the module's text is their specification."""

    block_rows = 0

    def __init__(self, int8: bool = False) -> None:
        self.int8 = int8
        self.exact = not int8
        self.name = "bitmap-tile-int8" if int8 else "bitmap-tile"
        self.prefix = "BitmapTileInt8" if int8 else "BitmapTile"
        self.inputs: tuple[str, ...] = ("mask", "offsets", "values", *["scales"] * int8)
        self.unit = 16 if int8 else 8  # values in 16 bytes

    def refusal(self, weight: Array) -> str:
        """Return why ``weight`` cannot be stored so, or an empty string."""
        if reason := common_refusal(weight, STRIP, GROUP):
            return reason
        return "holds NaN or infinity" if self.int8 and not np.isfinite(weight).all() else ""

    def encode(self, weight: Array) -> tuple[Array, ...]:
        """Return mask, offsets, values (and scales) of ``weight`` (N, K), float16 or bfloat16."""
        stored, scales = self._quantized(weight) if self.int8 else (weight, None)
        with np.errstate(invalid="ignore"):  # ml_dtypes raises the flag for NaN
            keep = self._tiles(padded(weight != 0, STRIP, GROUP))  # (groups, 2048)
        elements = self._tiles(padded(stored, STRIP, GROUP))
        counts = np.count_nonzero(keep, axis=1)
        units = -(-counts // self.unit)
        offsets = 1 + np.concatenate([[0], np.cumsum(units)])
        values = np.full(int(offsets[-1]) * self.unit, _ZERO_BYTE if self.int8 else 0, stored.dtype)
        within = np.cumsum(keep, axis=1) - 1
        values[(offsets[:-1, None] * self.unit + within)[keep]] = elements[keep]
        mask = np.packbits(keep.reshape(-1, 8), axis=1, bitorder="little").reshape(-1)
        tensors = (mask, offsets.astype(np.int32), values)
        return tensors if scales is None else (*tensors, scales)

    def _quantized(self, weight: Array) -> tuple[Array, Array]:
        """Return bytes (N, K) and scales (N,)."""
        wide = weight.astype(np.float32)
        largest = np.abs(wide).max(axis=1)
        scales = np.where(largest > 0, largest / np.float32(127), 1).astype(np.float32)
        return (np.rint(wide / scales[:, None]) + _ZERO_BYTE).astype(np.uint8), scales

    @staticmethod
    def _tiles(matrix: Array) -> Array:
        """Return (strips * groups, 2048) of a matrix whose sides are multiples of 16 and 128."""
        strips, groups = matrix.shape[0] // STRIP, matrix.shape[1] // GROUP
        # strip, half of its rows, row, group, step, half of its columns, column
        parts = matrix.reshape(strips, 2, 8, groups, 8, 2, 8)
        return parts.transpose(0, 3, 4, 5, 1, 2, 6).reshape(strips * groups, STRIP * GROUP)

    def decode(self, tensors: Sequence[Array], shape: tuple[int, int], data_type: int, where: str) -> Array:
        """Return ``W (N, K)``.

        Raises:
            ModelError: when sizes, types, offsets or the number of set bits are wrong.
        """
        check_shape(shape, data_type, where)
        mask, offsets, values = tensors[:3]
        rows, cols = ceil_to(shape[0], STRIP), ceil_to(shape[1], GROUP)
        groups = rows * cols // (STRIP * GROUP)
        check_tensor(mask, np.uint8, [groups * 256], "mask", where)
        check_tensor(offsets, np.int32, [groups + 1], "offsets", where)
        check_values(values, TensorProto.UINT8 if self.int8 else data_type, self.unit, where)
        keep: Bits = np.unpackbits(mask, bitorder="little").view(np.bool_).reshape(groups, -1)
        units = -(-np.count_nonzero(keep, axis=1) // self.unit)
        starts = 1 + np.concatenate([[0], np.cumsum(units)])
        if not np.array_equal(starts, offsets) or starts[-1] * self.unit != values.size:
            raise ModelError(f"offsets of {where} do not agree with its mask and its {values.size} values")
        elements = np.full(keep.shape, _ZERO_BYTE if self.int8 else 0, values.dtype)
        position = starts[:-1, None] * self.unit + np.cumsum(keep, axis=1) - 1
        elements[keep] = values[position[keep]]
        parts = elements.reshape(rows // STRIP, cols // GROUP, 8, 2, 2, 8, 8)
        weight = parts.transpose(0, 4, 5, 1, 2, 3, 6).reshape(rows, cols)[: shape[0], : shape[1]]
        if not self.int8:
            return np.ascontiguousarray(weight)
        check_tensor(tensors[3], np.float32, [shape[0]], "scales", where)
        wide = (weight.astype(np.float32) - _ZERO_BYTE) * tensors[3][:, None]
        return wide.astype(np_dtype(data_type))

    def extra(self, rows: int, cols: int) -> Mapping[str, list[int]]:
        """Return ``grid`` (strips, groups) and ``padded`` (K, N with their padding)."""
        rows, cols = ceil_to(rows, STRIP), ceil_to(cols, GROUP)
        return {"grid": [rows // STRIP, cols // GROUP], "padded": [cols, rows]}

    def body(self) -> list[onnx.NodeProto]:
        """Return the decoding nodes: a running count of bits within each group is the slot of each value."""
        table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        nodes = [
            constant("table", table, np.uint8),
            constant("per_group", [-1, STRIP * GROUP]),
            constant("flat", [-1]),
            constant("column", [-1, 1]),
            constant("axis", 1, np.int32),
            constant("unit", self.unit, np.int32),
            constant("one", 1, np.int32),
            constant("first", [0]),
            constant("last", [-1]),
            constant("parts", [8, 2, 2, 8, 8]),
            node("Cast", ["mask"], "byte", to=TensorProto.INT32),
            node("Gather", ["table", "byte"], "bits_of_byte", axis=0),
            node("Reshape", ["bits_of_byte", "per_group"], "bits"),
            node("Cast", ["bits"], "bit", to=TensorProto.INT32),
            node("CumSum", ["bit", "axis"], "count"),
            node("Slice", ["offsets", "first", "last"], "starts"),
            node("Mul", ["starts", "unit"], "start_values"),
            node("Sub", ["start_values", "one"], "before"),
            node("Reshape", ["before", "column"], "before_column"),
            node("Add", ["count", "before_column"], "slot_if_set"),
            node("Mul", ["slot_if_set", "bit"], "slots"),  # slot 0 is zero
            node("Reshape", ["slots", "flat"], "slot"),
            node("GatherElements", ["values", "slot"], "elements", axis=0),
            node("Concat", ["grid", "parts"], "in_parts", axis=0),
            node("Reshape", ["elements", "in_parts"], "tiles"),
            node("Transpose", ["tiles"], "turned", perm=[1, 2, 3, 6, 0, 4, 5]),
            node("Reshape", ["turned", "padded"], "whole"),
        ]
        if not self.int8:
            return [*nodes, *cut("whole", "W")]
        return [
            *nodes,
            *cut("whole", "bytes"),
            constant("zero_byte", _ZERO_BYTE, np.float32),
            node("Cast", ["bytes"], "wide", to=TensorProto.FLOAT),
            node("Sub", ["wide", "zero_byte"], "centred"),
            node("Mul", ["centred", "scales"], "scaled"),
            cast_to_weight("scaled", "W"),
        ]
