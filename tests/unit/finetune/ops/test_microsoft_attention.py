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


def grouped(
    *,
    lengths: list[int],
    queries: int = 1,
    cached: int = 0,
    packed: bool = False,
    rotary: int | None = None,
    positions: bool = False,
    attention_bias: bool = False,
    sink: bool = False,
    heads: tuple[int, int] = (4, 2),
    outputs: int = 3,
    **attributes: Any,
) -> Node:
    """``lengths``: tokens of each sequence with the new ones; ``cached``: room of the past, 0: none."""
    draw = draws()
    (q, kv), size, batch = heads, 32, len(lengths)  # ONNX Runtime rotates multiples of 16
    inputs: list[Array | None] = [draw(batch, queries, n * size) for n in (q, kv, kv)]
    if packed:
        inputs = [draw(batch, queries, (q + 2 * kv) * size), None, None]
    inputs += [draw(batch, kv, cached, size) for _ in range(2)] if cached else [None, None]
    inputs += [ints(*lengths) - 1, np.array(max(lengths), np.int32)]
    inputs += [draw(16, rotary // 2) for _ in range(2)] if rotary else [None, None]
    places = np.array([np.arange(n - queries, n) for n in lengths], np.int64)
    inputs.append(places if positions else None)
    inputs.append(draw(batch, 1, queries, max(lengths)) if attention_bias else None)
    inputs.append(draw(q) if sink else None)
    attributes |= {"num_heads": q, "kv_num_heads": kv, "do_rotary": int(bool(rotary))}
    return Node("GroupQueryAttention", trimmed(inputs), attributes, outputs, 1, MS, True)


STAGES: dict[str, dict[str, Any]] = {
    "prompt": {"lengths": [4, 4], "queries": 4},
    "token": {"lengths": [5, 3], "cached": 4},
    "token_room": {"lengths": [5, 3], "cached": 9},
    "chunk": {"lengths": [6], "queries": 3, "cached": 8},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"packed": True, "rotary": 32},
    "rotary": {"rotary": 16},
    "interleaved": {"rotary": 16, "rotary_interleaved": 1},
    "positions": {"rotary": 16, "positions": True},
    "softcap": {"softcap": 1.5, "scale": 0.4},
    "window": {"local_window_size": 2},
    "smooth": {"smooth_softmax": 1},
    "sink": {"sink": True, "local_window_size": 1, "softcap": 2.0},
    "bias": {"attention_bias": True, "softcap": 1.5},
    "own_heads": {"heads": (4, 4)},
    "both_ways": {"causal": 0},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stage", STAGES)
def test_grouped(stage: str, variant: str) -> None:
    example = grouped(**STAGES[stage], **VARIANTS[variant])
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


@pytest.mark.parametrize("variant", VARIANTS)
def test_grouped_prompts_of_different_lengths(variant: str) -> None:
    """What comes behind the end of a sequence is padding: any number, but no NaN, and no gradient of NaN."""
    lengths = [4, 2]
    example = grouped(lengths=lengths, queries=4, outputs=1, **VARIANTS[variant])
    (ours,), (theirs,) = example.by_torch(), example.by_ort()
    for mine, other, length in zip(ours, theirs, lengths, strict=True):
        assert_same([mine[:length]], [other[:length]])
    assert np.isfinite(ours).all()
    assert_gradients(example)


def test_grouped_norm() -> None:
    """Only the GPU providers of ONNX Runtime have it: compared with normed inputs."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(32).astype(np.float32) for _ in range(2)]
    example = grouped(lengths=[4, 4], queries=4, rotary=16)
    normed = list(example.inputs)
    for index, weight in enumerate(weights):
        x = example.inputs[index]
        assert x is not None
        heads = x.reshape(*x.shape[:2], -1, 32)
        normed[index] = (heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-6) * weight).reshape(x.shape)
    inputs = [*example.inputs, *[None] * (14 - len(example.inputs)), *weights]
    assert_same(example._replace(inputs=inputs).by_torch(), example._replace(inputs=normed).by_ort())
    assert_gradients(example._replace(inputs=inputs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_quant_type": "PER_TENSOR"}, "quantised"),
        ({"sliding_window_cache": 1}, "sliding_window_cache"),
        ({"qk_output": 1}, "qk_output"),
    ],
)
def test_grouped_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        grouped(lengths=[4], queries=4, **changes).by_torch()


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("start", [True, False], ids=["offset", "positions"])
@pytest.mark.parametrize("form", ["3d", "4d", "part"])
def test_rotary_embedding(form: str, start: bool, interleaved: int) -> None:
    draw = draws()
    x = draw(BATCH, HEADS, QUERIES, 8) if form == "4d" else draw(BATCH, QUERIES, HEADS * 8)
    positions = np.array([5]) if start else np.random.default_rng(0).integers(0, 10, (BATCH, QUERIES))
    half = 2 if form == "part" else 4
    attributes = {"interleaved": interleaved}
    if form == "part":
        attributes |= {"num_heads": HEADS, "rotary_embedding_dim": 4}
    inputs = [x, positions, draw(10, half), draw(10, half)]
    example = Node("RotaryEmbedding", inputs, attributes, 1, 1, MS)
    assert_same(example.by_torch(), example.by_ort())
    assert_gradients(example)


def test_gradcheck() -> None:
    example = grouped(lengths=[3, 2], cached=3, rotary=16, sink=True, softcap=2.0, outputs=1)
    tensors = [None if x is None else torch.from_numpy(x) for x in example.inputs]
    floats = [i for i, t in enumerate(tensors) if t is not None and t.is_floating_point()]

    def function(*values: torch.Tensor) -> torch.Tensor:
        for i, value in zip(floats, values, strict=True):
            tensors[i] = value
        return example.call(*tensors)[0]

    given = [tensors[i].double().requires_grad_() for i in floats]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(function, given, fast_mode=True)
