"""Attention operators of com.microsoft against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from onnxprune.finetune.registry import Unsupported
from tests.unit.finetune.ops.one_node import Array, Node, assert_gradients, assert_same

MS = "com.microsoft"
BATCH, QUERIES, KEYS, PAST, HEADS, SIZE = 2, 4, 5, 3, 2, 4


def draws(seed: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def trimmed(inputs: list[Array | None]) -> list[Array | None]:
    while inputs[-1] is None:
        inputs.pop()
    return inputs


def ints(*values: Any) -> Array:
    return np.array(values, np.int32)


def attention(
    mask: Array | None = None,
    *,
    past: bool = False,
    bias: bool = True,
    attention_bias: tuple[int, ...] | None = None,
    value_size: int = SIZE,
    outputs: int = 1,
    **attributes: Any,
) -> Node:
    """Self-attention of 6 features, projected by its own weights."""
    draw = draws()
    width = HEADS * (2 * SIZE + value_size)
    inputs = [draw(BATCH, QUERIES, 6), draw(6, width), draw(width) if bias else None, mask]
    inputs.append(draw(2, BATCH, HEADS, PAST, SIZE) if past else None)
    total = QUERIES + (PAST if past else 0)
    inputs.append(None if attention_bias is None else draw(*attention_bias, QUERIES, total))
    if value_size != SIZE:
        attributes["qkv_hidden_sizes"] = [HEADS * SIZE, HEADS * SIZE, HEADS * value_size]
    return Node("Attention", trimmed(inputs), {"num_heads": HEADS, **attributes}, outputs, 1, MS, True)


def mask_of(form: str, total: int) -> Array | None:
    rng = np.random.default_rng(5)
    return {
        "none": None,
        "ends": ints(total, total - 2),
        "ends_starts": ints(total, total - 1, 1, 0),
        "2d": rng.integers(0, 2, (BATCH, total), dtype=np.int32),
        "3d": rng.integers(0, 2, (BATCH, QUERIES, total), dtype=np.int32),
    }[form]


MASKS = ("none", "ends", "ends_starts", "2d", "3d")


LAYOUTS = ("separate", "packed_kv", "packed_qkv", "key_4d")


def multi_head(
    layout: str = "separate",
    mask: Array | None = None,
    *,
    past: bool = False,
    bias: bool = False,
    attention_bias: tuple[int, ...] | None = None,
    value_size: int = SIZE,
    keys: int = KEYS,
    outputs: int = 1,
    **attributes: Any,
) -> Node:
    draw = draws()
    keys = QUERIES if layout == "packed_qkv" else keys
    query = draw(BATCH, QUERIES, HEADS * SIZE)
    key: Array | None = draw(BATCH, keys, HEADS * SIZE)
    value: Array | None = draw(BATCH, keys, HEADS * value_size)
    if layout == "packed_qkv":
        query, key, value = draw(BATCH, QUERIES, HEADS, 3, SIZE), None, None
    elif layout == "packed_kv":
        key, value = draw(BATCH, keys, HEADS, 2, SIZE), None
    elif layout == "key_4d":
        key, value = draw(BATCH, HEADS, keys, SIZE), draw(BATCH, HEADS, keys, value_size)
    inputs = [query, key, value, draw(HEADS * (2 * SIZE + value_size)) if bias else None, mask]
    total = keys + (PAST if past else 0)
    inputs.append(None if attention_bias is None else draw(*attention_bias, QUERIES, total))
    inputs += [draw(BATCH, HEADS, PAST, SIZE), draw(BATCH, HEADS, PAST, value_size)] if past else []
    return Node("MultiHeadAttention", trimmed(inputs), {"num_heads": HEADS, **attributes}, outputs, 1, MS, True)
