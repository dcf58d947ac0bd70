"""Layouts ``block-64`` and ``block-32``, version 1: blocks of 64 or 32 rows x 64 columns, zero ones left out.

For any number of rows of X. W (N, K) is filled up with zeros to whole blocks.

``slots``
    int32, (rows of blocks, columns of blocks): where the block is in ``values``, 0 for a block of zeros.
``values``
    float16 or bfloat16, (1 + kept blocks, block rows * 64): a block of zeros, then the kept ones, row by row.
    Within a block: strips of 16 rows, then steps of 16 columns, then the 32 lanes of a warp, then the 8
    values that the lane holds as operand A of ``mma.m16n8k16`` (PTX ISA): a warp reads a fragment as 512
    bytes in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxprune.errors import ModelError
from onnxprune.storage.device.layout import (
    Bits,
    ceil_to,
    check_shape,
    check_tensor,
    common_refusal,
    constant,
    cut,
    node,
    padded,
)
from onnxprune.storage.form import Array, np_dtype

COLUMNS = 64
# Of a strip: step, row of 8, pair of columns, half of the columns, half of the rows, column of the pair
_FRAGMENT = (4, 8, 4, 2, 2, 2)


class BlockSparse:
    """The layout ``block-R``, R rows a block; the module's text is its specification."""

    inputs: tuple[str, ...] = ("slots", "values")
    exact = True

    def __init__(self, rows: int) -> None:
        self.block_rows = rows
        self.name = f"block-{rows}"
        self.prefix = "BlockSparse"

    def refusal(self, weight: Array) -> str:
        """Return why ``weight`` cannot be stored so, or an empty string."""
        if reason := common_refusal(weight, self.block_rows, COLUMNS):
            return reason
        return "" if not self.kept(weight).all() else f"no block of {self.block_rows}x{COLUMNS} is zero"

    def kept(self, weight: Array) -> Bits:
        """Return which blocks have a nonzero, (rows of blocks, columns of blocks)."""
        with np.errstate(invalid="ignore"):
            keep = padded(weight != 0, self.block_rows, COLUMNS)
        rows, cols = keep.shape
        parts = keep.reshape(rows // self.block_rows, self.block_rows, cols // COLUMNS, COLUMNS)
        return np.asarray(parts.any(axis=(1, 3)))

    def encode(self, weight: Array) -> tuple[Array, ...]:
        """Return slots and values of ``weight`` (N, K), float16 or bfloat16."""
        kept = self.kept(weight)
        slots = (
            np.where(kept.reshape(-1), np.cumsum(kept.reshape(-1)), 0).astype(np.int32).reshape(kept.shape)
        )
        whole = padded(weight, self.block_rows, COLUMNS)
        strips = self.block_rows // 16
        # row of blocks, strip, half, row; column of blocks, step, half, pair, column
        parts = whole.reshape(kept.shape[0], strips, 2, 8, kept.shape[1], 4, 2, 4, 2)
        blocks = parts.transpose(0, 4, 1, 5, 3, 7, 6, 2, 8).reshape(*kept.shape, -1)
        values = np.concatenate([np.zeros((1, blocks.shape[2]), weight.dtype), blocks[kept]])
        return slots, values

    def decode(self, tensors: Sequence[Array], shape: tuple[int, int], data_type: int, where: str) -> Array:
        """Return ``W (N, K)``.

        Raises:
            ModelError: when sizes or types are wrong, or a slot names a block that is not there.
        """
        check_shape(shape, data_type, where)
        slots, values = tensors
        rows, cols = ceil_to(shape[0], self.block_rows), ceil_to(shape[1], COLUMNS)
        grid = (rows // self.block_rows, cols // COLUMNS)
        check_tensor(slots, np.int32, grid, "slots", where)
        size = self.block_rows * COLUMNS
        if values.ndim != 2 or not len(values):
            raise ModelError(
                f"values of {where} have shape {list(values.shape)}, wanted [1 + blocks, {size}]"
            )
        check_tensor(values, np_dtype(data_type), [len(values), size], "values", where)
        if slots.min() < 0 or slots.max() >= len(values):
            raise ModelError(f"slots of {where} name blocks beyond its {len(values) - 1}")
        if (values[0] != 0).any():
            raise ModelError(f"values of {where} do not begin with a block of zeros")
        parts = values[slots].reshape(*grid, self.block_rows // 16, *_FRAGMENT)
        whole = parts.transpose(0, 2, 7, 4, 1, 3, 6, 5, 8).reshape(rows, cols)
        return np.ascontiguousarray(whole[: shape[0], : shape[1]])

    def extra(self, rows: int, cols: int) -> Mapping[str, list[int]]:
        """Return ``grid`` (rows of blocks, columns of blocks, strips of a block) and ``padded`` (K, N)."""
        rows, cols = ceil_to(rows, self.block_rows), ceil_to(cols, COLUMNS)
        grid = [rows // self.block_rows, cols // COLUMNS, self.block_rows // 16]
        return {"grid": grid, "padded": [cols, rows]}

    def body(self) -> list[onnx.NodeProto]:
        """Return the decoding nodes: one Gather of whole blocks."""
        return [
            constant("parts", _FRAGMENT),
            node("Gather", ["values", "slots"], "blocks", axis=0),
            node("Concat", ["grid", "parts"], "in_parts", axis=0),
            node("Reshape", ["blocks", "in_parts"], "tiles"),
            node("Transpose", ["tiles"], "turned", perm=[1, 3, 6, 5, 8, 0, 2, 7, 4]),
            node("Reshape", ["turned", "padded"], "whole"),
            *cut("whole", "W"),
        ]
