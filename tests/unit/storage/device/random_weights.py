"""Weights with the zeros that a device layout is for."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.storage.form import Array


def pruned(name: str, shape: tuple[int, int], dtype: Any, seed: int = 0) -> Array:
    """A random weight with the zeros that the layout is for."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(dtype)
    rows, cols = shape
    if name.startswith("block"):
        size = int(name.removeprefix("block-"))
        kept = rng.random((-(-rows // size), -(-cols // 64))) < 0.4
        kept[0, 0] = False
        weight[~np.repeat(np.repeat(kept, size, 0), 64, 1)[:rows, :cols]] = 0
    elif name == "nm-tile":
        order = np.argsort(rng.random((rows, -(-cols // 4), 4)), axis=-1)
        keep = (order < 2).reshape(rows, -1)[:, :cols]
        weight[~keep] = 0
    else:
        weight[rng.random(shape) < (0.95 if name == "delta" else 0.7)] = 0
    return weight
