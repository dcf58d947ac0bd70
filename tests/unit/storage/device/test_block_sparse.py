from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.storage.device.block_sparse import BlockSparse

F16 = TensorProto.FLOAT16


@pytest.mark.parametrize("rows", [32, 64])
def test_layout(check_layout: Callable[..., None], rows: int) -> None:
    check_layout(BlockSparse(rows))


def test_where_blocks_and_values_are() -> None:
    weight = np.zeros((128, 128), np.float16)
    weight[64 + 17, 64 + 16 + 8 + 3] = 5.0  # block (1, 1): strip 1, row 1; step 1, right half, pair 1, second
    slots, values = BlockSparse(64).encode(weight)
    assert slots.tolist() == [[0, 0], [0, 1]] and values.shape == (2, 64 * 64)
    lane, element = 1 * 4 + 1, 4 + 1  # registers: left upper, left lower, right upper, right lower
    assert np.flatnonzero(values[1]).tolist() == [((1 * 4 + 1) * 32 + lane) * 8 + element]


def test_a_weight_without_a_zero_block_stays() -> None:
    assert BlockSparse(32).refusal(np.ones((64, 128), np.float16)) == "no block of 32x64 is zero"
    assert BlockSparse(32).kept(np.eye(64, dtype=np.float16)).tolist() == [[True], [True]]


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda a: a[:, :-1], "slots of w is int32"),
        (0, lambda a: a + np.int32(50), "name blocks beyond"),
        (0, lambda a: a - np.int32(1), "name blocks beyond"),
        (1, lambda a: a[:, :-1], "values of w is float16"),
        (1, lambda a: a.reshape(-1), "have shape"),
        (1, lambda a: a + np.float16(1), "do not begin with a block of zeros"),
    ],
)
def test_broken(weight_for: Callable[..., Any], position: int, change: Any, message: str) -> None:
    layout = BlockSparse(64)
    tensors = list(layout.encode(weight_for("block-64", (128, 200))))
    tensors[position] = change(tensors[position])
    with pytest.raises(ModelError, match=message):
        layout.decode(tensors, (128, 200), F16, "w")
