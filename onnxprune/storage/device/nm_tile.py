"""Layout ``nm-tile``: 2:4, at most two nonzeros of every four neighbouring inputs. Version 1.

W (N, K) is cut into strips of 16 rows and groups of 128 columns, both filled up with zeros; a group is 4
tiles of 32 columns, each one operand A of ``mma.sp.m16n8k32`` (PTX ISA, "Sparse matrix storage"; the order in
which a warp reads it is that of its registers, as in Sparse-Marlin, Castro et al. 2025).

``meta``
    uint8, ``strips * groups * 256``: per two tiles and lane 4 bytes, least significant first. Bits 0 to 15
    are of row lane / 4, bits 16 to 31 of the row 8 below; each has four times two positions (2 bits each,
    ascending) of the nonzeros in four columns. Lanes 0 and 1 of each four hold columns 0-15 and 16-31 of the
    first tile (selector 0), lanes 2 and 3 those of the second (selector 1).
``values``
    float16 or bfloat16: 8 zeros, then per tile and lane 8 values: for the left and the right 16 columns the
    two of the four columns ``lane % 4`` in row lane / 4 and in the row 8 below.

Where fewer than two of four are nonzero, zeros are stored. 9 bits a weight.
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
from onnxprune.storage.form import Array

_FRONT = 8  # zeros before the values: what the function reads for a weight that is not stored
_ORDERED = frozenset(low | high << 2 for high in range(4) for low in range(high))


class NMTile:
    """The layout ``nm-tile``; the module's text is its specification."""

    name = "nm-tile"
    prefix = "NMTile"
    inputs: tuple[str, ...] = ("meta", "values")
    block_rows = 0
    exact = True

    def refusal(self, weight: Array) -> str:
        """Return why ``weight`` cannot be stored so, or an empty string."""
        if reason := common_refusal(weight, STRIP, GROUP):
            return reason
        with np.errstate(invalid="ignore"):
            keep = padded(weight != 0, STRIP, GROUP).reshape(-1, 4)
        return (
            "" if keep.sum(axis=1).max() <= 2 else "has more than two nonzeros in four neighbouring columns"
        )

    def encode(self, weight: Array) -> tuple[Array, ...]:
        """Return meta and values of ``weight`` (N, K), float16 or bfloat16, at most 2:4."""
        whole = padded(weight, STRIP, GROUP)
        strips, groups = whole.shape[0] // STRIP, whole.shape[1] // GROUP
        # strip, half of its rows, row; group, tile, half of its columns, four columns, column
        quads = whole.reshape(strips, 2, 8, groups, 4, 2, 4, 4)
        with np.errstate(invalid="ignore"):
            zero = quads == 0
        # Positions of the two nonzeros, or of zeros where there are fewer, ascending
        positions = np.sort(np.argsort(zero, axis=-1, kind="stable")[..., :2], axis=-1)
        values = np.take_along_axis(quads, positions, axis=-1)
        nibbles = (positions[..., 0] | positions[..., 1] << 2).astype(np.uint8)
        # -> strip, group, tile, row, four columns, half of the columns, half of the rows, which
        ordered = values.transpose(0, 3, 4, 2, 6, 5, 1, 7).reshape(-1)
        # -> strip, group, two tiles, row, which tile, half of the columns, half of the rows, four columns
        pairs = nibbles.reshape(strips, 2, 8, groups, 2, 2, 2, 4).transpose(0, 3, 4, 2, 5, 6, 1, 7)
        pairs = pairs.reshape(-1, 2)
        meta = pairs[:, 0] | pairs[:, 1] << np.uint8(4)
        return meta, np.concatenate([np.zeros(_FRONT, weight.dtype), ordered])

    def decode(self, tensors: Sequence[Array], shape: tuple[int, int], data_type: int, where: str) -> Array:
        """Return ``W (N, K)``.

        Raises:
            ModelError: when sizes or types are wrong, or positions do not ascend.
        """
        check_shape(shape, data_type, where)
        meta, values = tensors
        rows, cols = ceil_to(shape[0], STRIP), ceil_to(shape[1], GROUP)
        strips, groups = rows // STRIP, cols // GROUP
        check_tensor(meta, np.uint8, [strips * groups * 256], "meta", where)
        check_values(values, data_type, 8, where)
        if values.size != _FRONT + rows * cols // 2 or (values[:_FRONT] != 0).any():
            raise ModelError(f"{where} has {values.size} values, wanted 8 zeros and {rows * cols // 2} more")
        nibbles = np.stack([meta & 15, meta >> 4], axis=-1)
        if not set(np.unique(nibbles).tolist()) <= _ORDERED:
            raise ModelError(f"meta of {where} has positions that do not ascend")
        pairs = nibbles.reshape(strips, groups, 2, 8, 2, 2, 2, 4)
        # -> strip, half of the rows, row, group, tile, half of the columns, four columns
        nibbles = pairs.transpose(0, 6, 3, 1, 2, 4, 5, 7).reshape(strips, 2, 8, groups, 4, 2, 4)
        ordered = values[_FRONT:].reshape(strips, groups, 4, 8, 4, 2, 2, 2).transpose(0, 6, 3, 1, 2, 5, 4, 7)
        quads = np.zeros((*nibbles.shape, 4), values.dtype)
        positions = np.stack([nibbles & 3, nibbles >> 2], axis=-1).astype(np.int64)
        np.put_along_axis(quads, positions, ordered, axis=-1)
        return np.ascontiguousarray(quads.reshape(rows, cols)[: shape[0], : shape[1]])

    def extra(self, rows: int, cols: int) -> Mapping[str, list[int]]:
        """Return ``grid`` (strips, groups) and ``padded`` (K, N with their padding)."""
        rows, cols = ceil_to(rows, STRIP), ceil_to(cols, GROUP)
        return {"grid": [rows // STRIP, cols // GROUP], "padded": [cols, rows]}

    def body(self) -> list[onnx.NodeProto]:
        """Return the decoding nodes: positions as bits, whose running count is the slot of each value."""
        bits = np.zeros((256, 2, 4), np.uint8)
        for byte in range(256):
            for half in range(2):
                nibble = byte >> 4 * half & 15
                bits[byte, half, [nibble & 3, nibble >> 2]] = 1
        return [
            constant("table", bits.reshape(256, 8), np.uint8),
            constant("flat", [-1]),
            constant("axis", 0, np.int32),
            constant("front", _FRONT - 1, np.int32),
            constant("lanes", [2, 8, 2, 2, 2, 4, 4]),
            constant("parts", [4, 8, 4, 2, 2, 4]),
            node("Cast", ["meta"], "byte", to=TensorProto.INT32),
            node("Gather", ["table", "byte"], "bits_of_byte", axis=0),
            node("Concat", ["grid", "lanes"], "in_lanes", axis=0),
            node("Reshape", ["bits_of_byte", "in_lanes"], "by_lane"),
            # strip, group, two tiles, row, tile, half of columns, half of rows, four, column -> as values lie
            node("Transpose", ["by_lane"], "by_value", perm=[0, 1, 2, 4, 3, 7, 5, 6, 8]),
            node("Reshape", ["by_value", "flat"], "bits"),
            node("Cast", ["bits"], "bit", to=TensorProto.INT32),
            node("CumSum", ["bit", "axis"], "count"),
            node("Add", ["count", "front"], "slot_if_set"),
            node("Mul", ["slot_if_set", "bit"], "slot"),  # slot 0 is zero
            node("GatherElements", ["values", "slot"], "elements", axis=0),
            node("Concat", ["grid", "parts"], "in_parts", axis=0),
            node("Reshape", ["elements", "in_parts"], "tiles"),
            # strip, group, tile, row, four, half of columns, half of rows, column
            node("Transpose", ["tiles"], "turned", perm=[1, 2, 5, 4, 7, 0, 6, 3]),
            node("Reshape", ["turned", "padded"], "whole"),
            *cut("whole", "W"),
        ]
