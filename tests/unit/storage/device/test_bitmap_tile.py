from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.storage.device.bitmap_tile import BitmapTile

F16 = TensorProto.FLOAT16


@pytest.mark.parametrize("int8", [False, True])
def test_layout(check_layout: Callable[..., None], int8: bool) -> None:
    check_layout(BitmapTile(int8))


def test_where_bits_and_values_are() -> None:
    """The text of the specification, by hand: one group, three weights."""
    weight = np.zeros((16, 128), np.float16)
    weight[3, 5] = 2.0  # upper left tile of step 0: byte 3, bit 5
    weight[9, 0] = 3.0  # lower left tile: byte 8 + 1, bit 0
    weight[0, 16 + 8] = 4.0  # step 1, upper right: tile 4 + 2, byte 0, bit 0
    mask, offsets, values = BitmapTile().encode(weight)
    assert mask.shape == (256,) and {int(i): int(mask[i]) for i in np.flatnonzero(mask)} == {
        3: 1 << 5,
        8 + 1: 1,
        (4 + 2) * 8: 1,
    }
    assert offsets.tolist() == [1, 2]
    assert values.tolist() == [0] * 8 + [2, 3, 4] + [0] * 5


def test_groups_begin_at_16_bytes(weight_for: Callable[..., Any]) -> None:
    weight = weight_for("bitmap-tile", (40, 300))
    for layout, unit in ((BitmapTile(), 8), (BitmapTile(True), 16)):
        tensors = layout.encode(weight)
        assert tensors[1].shape == (3 * 3 + 1,) and tensors[2].size == tensors[1][-1] * unit
    scales = BitmapTile(True).encode(weight)[3]
    np.testing.assert_allclose(scales, np.abs(weight).max(axis=1).astype(np.float32) / 127, rtol=1e-6)


def test_a_row_of_zeros_has_a_scale() -> None:
    weight = np.ones((16, 128), np.float16)
    weight[4] = 0
    tensors = BitmapTile(True).encode(weight)
    assert tensors[3][4] == 1
    np.testing.assert_allclose(BitmapTile(True).decode(tensors, (16, 128), F16, "w"), weight, rtol=1e-3)


def test_refusals() -> None:
    layout = BitmapTile()
    assert "two dimensions" in layout.refusal(np.zeros(3, np.float16))
    assert "float32" in layout.refusal(np.zeros((3, 4), np.float32))
    assert not layout.refusal(np.full((3, 4), np.inf, np.float16))
    assert "infinity" in BitmapTile(True).refusal(np.full((3, 4), np.inf, np.float16))


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda a: a[:-1], "mask of w is uint8"),
        (1, lambda a: a + 1, "offsets of w do not agree"),
        (1, lambda a: a.astype(np.int64), "offsets of w is int64"),
        (2, lambda a: a[:-1], "values of w are float16"),
        (2, lambda a: a.astype(np.float32), "values of w are float32"),
        (0, lambda a: a | np.uint8(255), "offsets of w do not agree"),
    ],
)
def test_broken(weight_for: Callable[..., Any], position: int, change: Any, message: str) -> None:
    layout = BitmapTile()
    tensors = list(layout.encode(weight_for("bitmap-tile", (40, 200))))
    tensors[position] = change(tensors[position])
    with pytest.raises(ModelError, match=message):
        layout.decode(tensors, (40, 200), F16, "w")


def test_broken_shape(weight_for: Callable[..., Any]) -> None:
    layout = BitmapTile()
    tensors = layout.encode(weight_for("bitmap-tile", (40, 200)))
    for shape in ((0, 200), (-40, 200), (2**40, 2**40)):
        with pytest.raises(ModelError, match="which no CUDA op has"):
            layout.decode(tensors, shape, F16, "w")
    with pytest.raises(ModelError, match="which no CUDA op has"):
        layout.decode(tensors, (40, 200), TensorProto.FLOAT, "w")
