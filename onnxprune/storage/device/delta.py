"""Layout ``delta``: each nonzero with its distance from the one before in its row, 4 bits. Version 1.

For 80 % zeros and more and few rows of X. An entry is 1 to 16 columns behind the one before (the first:
behind column
-1); farther nonzeros have entries of value zero in between. Each row is filled up to a multiple of 8 entries,
at least 8, with zeros one column apart, which may reach up to 8 columns beyond the last.

``starts``
    int32, (N + 1,): where the entries of each row begin, in units of 8, and where the last end. Strictly
    ascending.
``steps``
    uint8, 4 for 8 entries: distance - 1 of entry j in bits 4 j to 4 j + 3, least significant first.
``values``
    float16 or bfloat16, one an entry.

About 20 bits a nonzero: 2.45 bits a weight at 90 % zeros. Source: MACKO (Macko & Boza 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.storage.device.layout import (
    cast_to_weight,
    check_shape,
    check_tensor,
    check_values,
    common_refusal,
    constant,
    cut,
    node,
)
from onnxprune.storage.form import Array, np_dtype

LONGEST = 16
UNIT = 8
PAD = 8  # columns behind the last that padding may reach: kDeltaPad of ort_ops/cuda/layout.h
# A row of X must fit into a block's shared memory: 99 KiB on the smallest device that the kernels are for.
MAX_COLUMNS = 48 * 1024


class Delta:
    """The layout ``delta``; the module's text is its specification."""

    name = "delta"
    prefix = "Delta"
    inputs: tuple[str, ...] = ("starts", "steps", "values")
    block_rows = 0
    exact = True

    def refusal(self, weight: Array) -> str:
        """Return why ``weight`` cannot be stored so, or an empty string."""
        if reason := common_refusal(weight, 1, UNIT):
            return reason
        if weight.shape[1] > MAX_COLUMNS:
            return f"has {weight.shape[1]} columns, more than {MAX_COLUMNS} do not fit into shared memory"
        return ""

    def encode(self, weight: Array) -> tuple[Array, ...]:
        """Return starts, steps and values of ``weight`` (N, K), float16 or bfloat16."""
        with np.errstate(invalid="ignore"):
            rows, columns = np.nonzero(weight != 0)
        before = np.empty_like(columns)
        before[:1], before[1:] = -1, np.where(rows[1:] == rows[:-1], columns[:-1], -1)
        distance = columns - before
        fillers = (distance - 1) // LONGEST
        counts = np.bincount(rows, 1 + fillers, len(weight)).astype(np.int64)
        units = np.maximum(-(-counts // UNIT), 1)
        starts = np.concatenate([[0], np.cumsum(units)])
        # Entries of each row follow each other; what is not written is padding
        ends = np.cumsum(1 + fillers) - 1  # position of each nonzero, were there no padding
        shift = starts[:-1] * UNIT - np.concatenate([[0], np.cumsum(counts)[:-1]])
        position = ends + shift[rows]
        steps = np.zeros(int(starts[-1]) * UNIT, np.uint8)
        values = np.zeros(steps.size, weight.dtype)
        steps[position] = distance - 1 - fillers * LONGEST
        values[position] = weight[rows, columns]
        far = np.repeat(position, fillers)
        number = np.arange(far.size) - np.repeat(np.cumsum(fillers) - fillers, fillers)
        steps[far - 1 - number] = LONGEST - 1
        return starts.astype(np.int32), steps[::2] | steps[1::2] << np.uint8(4), values

    def decode(self, tensors: Sequence[Array], shape: tuple[int, int], data_type: int, where: str) -> Array:
        """Return ``W (N, K)``.

        Raises:
            ModelError: when sizes or types are wrong, starts do not ascend, or a row is too long.
        """
        check_shape(shape, data_type, where)
        starts, packed, values = tensors
        rows, cols = shape
        check_tensor(starts, np.int32, [rows + 1], "starts", where)
        check_values(values, data_type, UNIT, where)
        check_tensor(packed, np.uint8, [values.size // 2], "steps", where)
        if starts[0] != 0 or (np.diff(starts) < 1).any() or int(starts[-1]) * UNIT != values.size:
            raise ModelError(f"starts of {where} do not ascend from 0 to {values.size // UNIT}")
        steps = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).astype(np.int64) + 1
        reach = np.cumsum(steps)
        first = starts[:-1].astype(np.int64) * UNIT
        before = np.concatenate([[0], reach])[first]
        row = np.repeat(np.arange(rows), np.diff(starts).astype(np.int64) * UNIT)
        column = reach - 1 - before[row]
        inside = column < cols
        if column.max() >= cols + PAD or (values[~inside] != 0).any():
            raise ModelError(f"entries of {where} reach beyond its {cols} columns")
        weight = np.zeros(shape, np_dtype(data_type))
        weight[row[inside], column[inside]] = values[inside]
        return weight

    def extra(self, rows: int, cols: int) -> Mapping[str, list[int]]:
        """Return ``padded`` (N, K with room for the padding of a row)."""
        return {"padded": [rows, cols + PAD]}

    def body(self) -> list[onnx.NodeProto]:
        """Return the decoding nodes: columns are running sums within a row, values are scattered there."""
        nibbles = np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1) + 1
        return [
            constant("table", nibbles, np.int32),
            constant("flat", [-1]),
            constant("units", [-1, UNIT]),
            constant("column", [-1, 1]),
            constant("axis", 0, np.int32),
            constant("zero", [0], np.int32),
            constant("none", [0]),
            constant("one", [1]),
            constant("two", [2]),
            constant("last", [-1]),
            constant("row_axis", [1]),
            constant("unit", UNIT, np.int32),
            constant("single", 1, np.int32),
            # Where each entry is, counted through all rows
            node("Cast", ["steps"], "byte", to=TensorProto.INT32),
            node("Gather", ["table", "byte"], "pairs", axis=0),
            node("Reshape", ["pairs", "flat"], "step"),
            node("CumSum", ["step", "axis"], "reach"),
            # How far that was at the beginning of each row
            node("Concat", ["zero", "reach"], "reach_before", axis=0),
            node("Slice", ["starts", "none", "last"], "first_unit"),
            node("Mul", ["first_unit", "unit"], "first_entry"),
            node("Gather", ["reach_before", "first_entry"], "reach_of_row", axis=0),
            # The row of each unit: the number of rows that began up to it
            node("Reshape", ["reach", "units"], "reach_of_unit"),
            node("Slice", ["reach_of_unit", "none", "one", "row_axis"], "one_each"),
            node("Reshape", ["one_each", "flat"], "some"),
            node("Sub", ["some", "some"], "no_row"),
            node("Slice", ["starts", "one", "last"], "next_units"),
            node("Sub", ["next_units", "next_units"], "noughts"),
            node("Add", ["noughts", "single"], "ones"),
            node("ScatterElements", ["no_row", "next_units", "ones"], "begins", axis=0),
            node("CumSum", ["begins", "axis"], "row"),
            # Position in the padded matrix
            node("Slice", ["padded", "one", "two"], "width"),
            node("Cast", ["width"], "width32", to=TensorProto.INT32),
            node("Mul", ["row", "width32"], "row_start"),
            node("Gather", ["reach_of_row", "row"], "row_reach", axis=0),
            node("Sub", ["row_start", "row_reach"], "shift"),
            node("Sub", ["shift", "single"], "shift_less_one"),
            node("Reshape", ["shift_less_one", "column"], "shift_of_unit"),
            node("Add", ["reach_of_unit", "shift_of_unit"], "positions"),
            node("Reshape", ["positions", "flat"], "position"),
            node("ReduceProd", ["padded"], "size", keepdims=1),
            node("ConstantOfShape", ["size"], "empty"),
            cast_to_weight("empty", "room"),
            node("ScatterElements", ["room", "position", "values"], "filled", axis=0),
            node("Reshape", ["filled", "padded"], "rows"),
            node("Transpose", ["rows"], "whole", perm=[1, 0]),
            *cut("whole", "W"),
        ]
