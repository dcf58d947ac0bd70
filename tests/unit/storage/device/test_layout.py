from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import ModelError
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.layout import ceil_to, check_tensor, check_values, common_refusal, padded


def test_every_layout_has_a_name_of_its_own() -> None:
    assert list(LAYOUTS) == ["bitmap-tile", "bitmap-tile-int8", "block-64", "block-32", "nm-tile", "delta"]
    assert all(layout.name == name for name, layout in LAYOUTS.items())
    kinds = [(layout.prefix, layout.block_rows) for layout in LAYOUTS.values()]
    assert len(set(kinds)) == len(kinds)
    assert all("values" in layout.inputs for layout in LAYOUTS.values())


def test_padding() -> None:
    assert ceil_to(1, 16) == 16 == ceil_to(16, 16)
    found = padded(np.ones((3, 5), np.float16), 4, 8)
    assert found.shape == (4, 8) and found.sum() == 15


def test_too_large() -> None:
    flat = np.broadcast_to(np.float16(0), (2**14, 2**15))
    assert "1 GiB" in common_refusal(flat, 16, 128)
    assert "2**20" in common_refusal(np.broadcast_to(np.float16(0), (1, 2**20 + 1)), 16, 128)


def test_checks() -> None:
    check_tensor(np.zeros(3, np.uint8), np.uint8, [3], "mask", "w")
    with pytest.raises(ModelError, match=r"mask of w is uint8\[3\], wanted uint8\[4\]"):
        check_tensor(np.zeros(3, np.uint8), np.uint8, [4], "mask", "w")
    with pytest.raises(ModelError, match="a multiple of 8"):
        check_values(np.zeros(9, np.float16), 10, 8, "w")
    with pytest.raises(ModelError, match="a multiple of 8"):
        check_values(np.zeros(0, np.float16), 10, 8, "w")
