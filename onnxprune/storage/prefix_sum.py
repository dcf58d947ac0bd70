"""Running sums in standard ONNX of opsets 7 to 10; opset 11 brought ``CumSum``.

The summands, small integers, one for each of m stored bytes, stand in rows of 128; zeros fill the last one.
A product with a triangle of ones gives the running sums within each row; attributes of the node say which
zeros to add, and the sum of all rows before each one. Sums within a row stay below 2^15, so float32 holds
them exactly in any order, and so does bfloat16 the summands, which are at most 255: no fast mode of a matrix
product changes them.

``starts`` (tensor, int32, before opset 9 float64)
    shape ``(rows, parts)``: the sum of all summands before each row. A byte can hold several parts of the
    summands, which follow each other: first that of all bytes, then the next one.
``filler`` (tensor, uint8, before opset 9 float16)
    zeros behind the last byte, shape ``(k,)``. k is 1 to 128: not every runtime makes an empty piece.
``pieces`` (ints)
    ``[m, k]``.

They are for the bodies alone: numpy and the kernels take the sums from the stored tensors.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper

from onnxprune.storage.body import constant, given, given_tensor, tensor

MIN_OPSET = 7  # broadcasting as it is now
CUMSUM_OPSET = 11  # from here on bodies use CumSum, and nodes have no attributes of this module
ATTRIBUTES = ("starts", "filler", "pieces")
_WIDTH = 128


def values(parts: NDArray[np.uint8], opset: int) -> dict[str, list[int] | onnx.TensorProto]:
    """Return the attributes of a node whose body sums up ``parts`` (parts, m)."""
    count = parts.shape[1]
    filler = np.zeros(_WIDTH - count % _WIDTH, np.uint8)
    filled = np.hstack([parts, np.zeros((len(parts), filler.size), np.uint8)])
    sums_of_rows = filled.reshape(-1, _WIDTH).sum(axis=1, dtype=np.int32)
    starts = np.cumsum(sums_of_rows, dtype=np.int32) - sums_of_rows
    return {
        "starts": tensor(np.ascontiguousarray(starts.reshape(len(parts), -1).T), opset),
        "filler": tensor(filler, opset),
        "pieces": [count, filler.size],
    }


def rows(stored: str, output: str, opset: int) -> list[onnx.NodeProto]:
    """Return nodes from the bytes ``stored`` (uint8, (m,)) to rows of them (uint8, (rows, 128)).

    They also make what :func:`sums` needs.
    """
    node = helper.make_node
    edge = np.arange(_WIDTH, dtype=np.float32)
    return [
        *given_tensor("filler", "zeros", np.uint8, opset),
        *constant("row_shape", np.array([-1, _WIDTH], np.int64), opset),
        *constant("edge_above", edge[:, None], opset),
        *constant("edge_below", edge + 1, opset),
        node("Less", ["edge_above", "edge_below"], ["is_before"]),
        node("Cast", ["is_before"], ["triangle"], to=TensorProto.FLOAT),
        node("Concat", [stored, "zeros"], ["filled"], axis=0),
        node("Reshape", ["filled", "row_shape"], [output]),
    ]


def sums(summands: str, starts: str, output: str, shape: str, axis: int) -> list[onnx.NodeProto]:
    """Return nodes from ``summands`` (float32, (rows, 128)) to their running sums.

    Args:
        summands: name of the value.
        starts: name of the value, int32, (rows, 1).
        output: name of the sums, int32; the first one is the first summand.
        shape: name of the shape of the output: 1 everywhere, but -1 at ``axis``.
        axis: where the summands lie.
    """
    node = helper.make_node
    pieces = ("pieces", AttributeProto.INTS)
    return [
        node("MatMul", [summands, "triangle"], [f"{output}_in_row"]),
        node("Cast", [f"{output}_in_row"], [f"{output}_whole"], to=TensorProto.INT32),
        node("Add", [f"{output}_whole", starts], [f"{output}_rows"]),
        node("Reshape", [f"{output}_rows", shape], [f"{output}_all"]),
        given("Split", [f"{output}_all"], output, f"{output}_spare", axis=axis, split=pieces),
    ]
