from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.storage.device.nm_tile import NMTile

F16 = TensorProto.FLOAT16


def test_layout(check_layout: Callable[..., None]) -> None:
    check_layout(NMTile())


def test_where_positions_and_values_are() -> None:
    """Row 9, columns 32 + 16 + 4 + (1, 3): tile 1, right half, the second four, positions 1 and 3."""
    weight = np.zeros((16, 128), np.float16)
    weight[9, 32 + 16 + 4 + 1], weight[9, 32 + 16 + 4 + 3] = 5.0, 6.0
    meta, values = NMTile().encode(weight)
    lane = 1 * 4 + 1  # of the values: row 9 - 8, four 1
    place = 8 + (1 * 32 + lane) * 8 + 4 + 2  # right half, lower row
    assert {int(i): float(values[i]) for i in np.flatnonzero(values)} == {place: 5.0, place + 1: 6.0}
    words = meta.view("<u4").reshape(2, 32)  # two tiles, lane
    holder = 1 * 4 + 2 * 1 + 1  # selector 1, right half
    assert words[0, holder] >> 16 >> 4 & 15 == 1 | 3 << 2
    words[0, holder] &= ~np.uint32(0xF00000)
    words[0, holder] |= np.uint32(0x400000)
    assert (words == 0x44444444).all()  # elsewhere positions 0 and 1, of zeros


def test_the_pattern_of_one_quad_is_enough_to_refuse() -> None:
    weight = np.zeros((16, 128), np.float16)
    weight[0, 4:6] = 1
    assert not NMTile().refusal(weight)
    weight[0, 7] = 1
    assert "two nonzeros" in NMTile().refusal(weight)
    assert not NMTile().refusal(weight[:, 6:])  # fours are counted from the first column


def test_fewer_than_two_nonzeros(weight_for: Callable[..., Any]) -> None:
    weight = weight_for("nm-tile", (32, 256))
    weight[:, ::2] = 0
    tensors = NMTile().encode(weight)
    np.testing.assert_array_equal(NMTile().decode(tensors, (32, 256), F16, "w"), weight)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda a: a[:-1], "meta of w is uint8"),
        (0, lambda a: np.zeros_like(a), "positions that do not ascend"),
        (1, lambda a: a[:-8], "values, wanted 8 zeros"),
        (1, lambda a: a + np.float16(1), "values, wanted 8 zeros"),
    ],
)
def test_broken(weight_for: Callable[..., Any], position: int, change: Any, message: str) -> None:
    tensors = list(NMTile().encode(weight_for("nm-tile", (40, 200))))
    tensors[position] = change(tensors[position])
    with pytest.raises(ModelError, match=message):
        NMTile().decode(tensors, (40, 200), F16, "w")
