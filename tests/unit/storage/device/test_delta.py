from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.storage.device.delta import MAX_COLUMNS, Delta

F16 = TensorProto.FLOAT16


def test_layout(check_layout: Callable[..., None]) -> None:
    check_layout(Delta())


def test_where_entries_are() -> None:
    weight = np.zeros((3, 64), np.float16)
    weight[0, 0], weight[0, 16], weight[2, 40] = 5.0, 6.0, 7.0
    starts, steps, values = Delta().encode(weight)
    assert starts.tolist() == [0, 1, 2, 3]  # a row of zeros has padding alone
    nibbles = np.stack([steps & 15, steps >> 4], axis=1).reshape(3, 8)
    assert nibbles[0].tolist() == [0, 15, 0, 0, 0, 0, 0, 0]
    assert nibbles[2].tolist() == [15, 15, 8, 0, 0, 0, 0, 0]  # -1 + 16 + 16 + 9 = 40
    assert values.reshape(3, 8).tolist() == [[5, 6] + [0] * 6, [0] * 8, [0, 0, 7] + [0] * 5]


def test_last_column_with_padding_behind_it() -> None:
    weight = np.zeros((2, 5), np.float16)
    weight[0, 4] = weight[1, 4] = 1
    tensors = Delta().encode(weight)
    np.testing.assert_array_equal(Delta().decode(tensors, (2, 5), F16, "w"), weight)


def test_wide_weights_stay() -> None:
    assert not Delta().refusal(np.zeros((1, MAX_COLUMNS), np.float16))
    assert "shared memory" in Delta().refusal(np.zeros((1, MAX_COLUMNS + 1), np.float16))


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda a: a[:-1], "starts of w is int32"),
        (0, lambda a: a[::-1].copy(), "starts of w do not ascend"),
        (0, lambda a: np.where(np.arange(a.size) == 1, 0, a).astype(np.int32), "starts of w do not ascend"),
        (1, lambda a: a | np.uint8(255), "reach beyond its 200 columns"),
        (1, lambda a: a[:-1], "steps of w is uint8"),
        (2, lambda a: a[:-1], "values of w are float16"),
        (2, lambda a: a + np.float16(1), "reach beyond its 200 columns"),
    ],
)
def test_broken(weight_for: Callable[..., Any], position: int, change: Any, message: str) -> None:
    weight = weight_for("delta", (40, 200))
    weight[:, -1] = 1
    tensors = list(Delta().encode(weight))
    tensors[position] = change(tensors[position])
    with pytest.raises(ModelError, match=message):
        Delta().decode(tensors, (40, 200), F16, "w")
