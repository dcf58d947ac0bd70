"""Layouts for CUDA, version 1: what is written today is what kernels and older readers expect."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from onnxprune.storage.device import LAYOUTS

DIGESTS = {
    "bitmap-tile": "6be487251be33e81",
    "bitmap-tile-int8": "3276a148b8c0ecac",
    "block-64": "48b01eefd1b0e3b1",
    "block-32": "b1a01229a6cae698",
    "nm-tile": "070d05a5814f864c",
    "delta": "ff5e89a16da2eb6c",
}


def weight() -> np.ndarray:
    """(70, 333): integers below 2048 without any random generator; 2:4, with zero blocks and long gaps."""
    rows, cols = np.indices((70, 333))
    values = ((rows * 31 + cols * 17) % 2039 + 1).astype(np.float16)
    kept = ((rows + cols // 4) % 4 == cols % 4) | ((rows * 7 + cols) % 11 == 0) & (cols % 4 == 3)
    pairs = kept & (np.cumsum(kept.astype(int), axis=1) % 3 > 0)
    quads = np.add.reduceat(pairs.astype(int), np.arange(0, 333, 4), axis=1)
    assert quads.max() <= 2
    zero = ((rows < 32) & (cols >= 64) & (cols < 192)) | ((rows >= 64) & (cols >= 256))
    return np.where(pairs & ~zero, values, 0).astype(np.float16)


@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes(name: str) -> None:
    layout = LAYOUTS[name]
    assert not layout.refusal(weight())
    digest = hashlib.sha256()
    for tensor in layout.encode(weight()):
        digest.update(f"{tensor.dtype}{tensor.shape}".encode() + tensor.tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[name]
