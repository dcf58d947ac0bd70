"""Attention and RotaryEmbedding of the default domain against ONNX Runtime and the reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from onnxprune.finetune.registry import Unsupported
from tests.unit.finetune.ops.one_node import Array, Node, assert_gradients, assert_same

BATCH, QUERIES, KEYS, PAST, SIZE = 2, 3, 4, 2, 6


def attention(
    heads: tuple[int, int] = (4, 2),
    *,
    flat: bool = False,
    past: bool = False,
    mask: Array | None = None,
    nonpad: list[int] | None = None,
    queries: int = QUERIES,
    opset: int = 23,
    outputs: int = 4,
    dtype: Any = np.float32,
    **attributes: Any,
) -> Node:
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    def states(count: int, length: int, size: int) -> Array:
        return draw(BATCH, length, count * size) if flat else draw(BATCH, count, length, size)

    q, kv = heads
    inputs: list[Array | None] = [
        states(q, queries, SIZE),
        states(kv, KEYS, SIZE),
        states(kv, KEYS, SIZE + 2),
    ]
    inputs.append(mask)
    inputs += [draw(BATCH, kv, PAST, SIZE), draw(BATCH, kv, PAST, SIZE + 2)] if past else [None, None]
    inputs.append(None if nonpad is None else np.array(nonpad, np.int64))
    while inputs[-1] is None:
        inputs.pop()
    if flat:
        attributes |= {"q_num_heads": q, "kv_num_heads": kv}
    return Node("Attention", inputs, attributes, outputs, opset)


def float_mask(*shape: int) -> Array:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def bool_mask(*shape: int) -> Array:
    mask = np.random.default_rng(5).random(shape) < 0.6
    mask[..., 0] = True
    return mask


MASKS = {
    "none": None,
    "float": float_mask(QUERIES, KEYS),
    "float4": float_mask(BATCH, 4, QUERIES, KEYS),
    "bool": bool_mask(QUERIES, KEYS),
    "bool3": bool_mask(4, QUERIES, KEYS),
    "bool4": bool_mask(BATCH, 1, QUERIES, KEYS),
}


def widened(mask: Array | None, past: bool) -> Array | None:
    return mask if mask is None or not past else np.concatenate([mask[..., :PAST], mask], -1)


@pytest.mark.parametrize("causal", [0, 1], ids=["", "causal"])
@pytest.mark.parametrize("past", [False, True], ids=["", "past"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("flat", [False, True], ids=["4d", "3d"])
def test_masks(flat: bool, mask: str, past: bool, causal: int) -> None:
    example = attention(flat=flat, past=past, mask=widened(MASKS[mask], past), is_causal=causal)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize("heads", [(4, 4), (4, 1)], ids=["own", "one_for_all"])
@pytest.mark.parametrize("extra", [{}, {"softcap": 1.5, "scale": 0.3}, {"softmax_precision": 11}], ids=str)
def test_scores(heads: tuple[int, int], extra: dict[str, Any]) -> None:
    example = attention(heads, mask=MASKS["float"], **extra)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_scores_as_output(mode: int) -> None:
    example = attention(mask=MASKS["float"], softcap=1.0, qk_matmul_output_mode=mode)
    assert_same(example.by_torch(), example.by_ort())
    masked = attention(mask=MASKS["bool"], softcap=1.0, is_causal=1, qk_matmul_output_mode=mode)
    theirs = masked.by_reference()
    if mode == 0:  # the reference shows them after the softcap here, against the text and ONNX Runtime
        theirs[3] = masked.by_ort()[3]
    assert_same(masked.by_torch(), theirs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("queries", "causal"), [(QUERIES, 0), (QUERIES, 1), (1, 1)])
def test_padded_keys(mask: str, queries: int, causal: int) -> None:
    values = MASKS[mask]
    values = values if values is None else values[..., :queries, :]
    example = attention(opset=24, nonpad=[3, 4], queries=queries, mask=values, is_causal=causal, outputs=1)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


def test_short_mask() -> None:
    example = attention(opset=24, nonpad=[3, 2], mask=float_mask(QUERIES, 3), outputs=1)
    assert_same(example.by_torch(), example.by_reference())


@pytest.mark.parametrize(
    "extra",
    [{"left_window_size": 1}, {"right_window_size": 0}, {"left_window_size": 1, "right_window_size": 1}],
    ids=str,
)
@pytest.mark.parametrize("causal", [0, 1], ids=["", "causal"])
@pytest.mark.parametrize("cache", ["past", "nonpad", "none"])
def test_windows(cache: str, causal: int, extra: dict[str, int]) -> None:
    """ONNX Runtime has no windows yet."""
    example = attention(
        opset=25,
        past=cache == "past",
        nonpad=[4, 3] if cache == "nonpad" else None,
        mask=MASKS["float4"] if cache == "none" else None,
        is_causal=causal,
        outputs=1,
        **extra,
    )
    assert_same(example.by_torch(), example.by_reference())
    assert_gradients(example)


def test_row_without_keys_is_zero_with_finite_gradients() -> None:
    mask = bool_mask(QUERIES, KEYS)
    mask[1] = False
    example = attention(mask=mask, qk_matmul_output_mode=3)
    Y, *_, probabilities = example.by_torch()
    assert not Y[:, :, 1].any()
    assert not probabilities[:, :, 1].any()
    assert_same(example.by_torch(), example.by_reference())
    assert_gradients(example)


def test_heads_are_needed() -> None:
    example = attention(flat=True)
    with pytest.raises(Unsupported, match="q_num_heads"):
        example._replace(attributes={}).by_torch()


def test_half_a_past() -> None:
    example = attention(past=True)
    with pytest.raises(Unsupported, match="wanted together"):
        example._replace(inputs=example.inputs[:5]).by_torch()


def test_attention_gradcheck() -> None:
    example = attention(dtype=np.float64, past=True, is_causal=1, softcap=2.0, outputs=1)
    given = [None if x is None else torch.from_numpy(x).requires_grad_() for x in example.inputs]
    assert torch.autograd.gradcheck(lambda *x: example.call(*x)[0], given, fast_mode=True)


def rotary(*, flat: bool, positions: bool, rotated: int, interleaved: int) -> Node:
    rng = np.random.default_rng(3)
    heads, length, size = 3, 4, 8
    half = (rotated or size) // 2
    x = rng.standard_normal((BATCH, length, heads * size) if flat else (BATCH, heads, length, size))
    caches = [rng.standard_normal((10, half) if positions else (BATCH, length, half)) for _ in range(2)]
    inputs: list[Array | None] = [a.astype(np.float32) for a in (x, *caches)]
    if positions:
        inputs.append(rng.integers(0, 10, (BATCH, length)))
    attributes = {
        "interleaved": interleaved,
        "rotary_embedding_dim": rotated,
        "num_heads": heads if flat else 0,
    }
    return Node("RotaryEmbedding", inputs, attributes, opset=23)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotated", [0, 4])
@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_rotary_embedding(flat: bool, positions: bool, rotated: int, interleaved: int) -> None:
    example = rotary(flat=flat, positions=positions, rotated=rotated, interleaved=interleaved)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)
