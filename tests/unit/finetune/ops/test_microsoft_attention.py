"""Attention and MultiHeadAttention of com.microsoft against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.finetune.registry import Unsupported
from tests.unit.finetune.ops.one_node import Array, Node, assert_gradients, assert_same, draws, trimmed

MS = "com.microsoft"
BATCH, QUERIES, KEYS, PAST, HEADS, SIZE = 2, 4, 5, 3, 2, 4


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


@pytest.mark.parametrize("unidirectional", [0, 1], ids=["", "causal"])
@pytest.mark.parametrize("past", [False, True], ids=["", "past"])
@pytest.mark.parametrize("form", MASKS)
def test_attention_masks(form: str, past: bool, unidirectional: int) -> None:
    mask = mask_of(form, QUERIES + (PAST if past else 0))
    example = attention(mask, past=past, unidirectional=unidirectional, outputs=2 if past else 1)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize(
    "extra",
    [
        {"attention_bias": (1, 1)},
        {"attention_bias": (BATCH, HEADS), "scale": 0.4, "mask_filter_value": -3.0},
        {"value_size": 6},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["none", "2d"])
def test_attention_scores(form: str, extra: dict[str, Any]) -> None:
    example = attention(mask_of(form, QUERIES), unidirectional=1, **extra)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


def test_attention_without_bias() -> None:
    """ONNX Runtime 1.31 crashes without one."""
    example = attention(bias=False)
    inputs = [*example.inputs, np.zeros(3 * HEADS * SIZE, np.float32)]
    assert_same(example.by_torch(), example._replace(inputs=inputs).by_ort())
    assert_gradients(example)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_rotary": 1}, "do_rotary"),
        ({"past": True, "past_present_share_buffer": 1}, "shared by past and present"),
        ({"mask": ints(4, 4, 4)}, "mask of shape"),
        ({"mask": np.ones((BATCH, 1, QUERIES, QUERIES), np.int32)}, "4 dimensions"),
        ({"value_size": 6, "outputs": 2}, "differ in size"),
    ],
)
def test_attention_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        attention(**changes).by_torch()


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
    return Node(
        "MultiHeadAttention", trimmed(inputs), {"num_heads": HEADS, **attributes}, outputs, 1, MS, True
    )


@pytest.mark.parametrize("past", [False, True], ids=["", "past"])
@pytest.mark.parametrize("form", ["none", "ends", "2d", "3d"])
@pytest.mark.parametrize("layout", ["separate", "key_4d"])
def test_multi_head_masks(layout: str, form: str, past: bool) -> None:
    mask = mask_of(form, KEYS + (PAST if past else 0))
    example = multi_head(layout, mask, past=past, outputs=3 if past else 1)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize("form", ["none", "2d"])
@pytest.mark.parametrize("past", [False, True], ids=["", "past"])
def test_multi_head_causal(past: bool, form: str) -> None:
    mask = mask_of(form, QUERIES + (PAST if past else 0))
    example = multi_head(
        "separate", mask, past=past, keys=QUERIES, unidirectional=1, outputs=3 if past else 1
    )
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize("layout", ["separate", "key_4d"])
@pytest.mark.parametrize(
    "extra",
    [
        {"bias": True},
        {"attention_bias": (1, 1), "bias": True},
        {
            "attention_bias": (BATCH, HEADS),
            "scale": 0.4,
            "mask": mask_of("2d", KEYS),
            "mask_filter_value": -3.0,
        },
        {"outputs": 4},
    ],
    ids=["bias", "attention_bias", "scale", "scores"],
)
def test_multi_head_scores(layout: str, extra: dict[str, Any]) -> None:
    example = multi_head(layout, **extra)
    assert_same(example.by_torch(), example.by_ort())
    # of a bias for keys that came from elsewhere only the part of the queries is used
    assert_gradients(example)


def test_multi_head_wider_values() -> None:
    example = multi_head(value_size=6, bias=True)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("layout", ["packed_kv", "packed_qkv"])
def test_multi_head_packed(layout: str, bias: bool) -> None:
    """ONNX Runtime has these on the GPU only: compared with the same heads side by side."""
    example = multi_head(layout, bias=bias)
    packed = example.inputs[0 if layout == "packed_qkv" else 1]
    assert packed is not None
    parts = [packed[:, :, :, i].reshape(BATCH, packed.shape[1], -1) for i in range(packed.shape[3])]
    inputs = [*([] if layout == "packed_qkv" else [example.inputs[0]]), *parts, *example.inputs[3:]]
    assert_same(example.by_torch(), example._replace(inputs=inputs).by_ort())
    assert_gradients(example)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unidirectional": 1}, "runtimes disagree"),
        ({"mask": np.ones(3 * BATCH + 2, np.int32)}, "mask of shape"),
    ],
)
def test_multi_head_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        multi_head(**changes).by_torch()
