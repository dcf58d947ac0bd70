"""Operators of com.microsoft in models that generate text, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from onnxprune.finetune.registry import Unsupported
from tests.unit.finetune.ops.one_node import Array, Node, assert_gradients, assert_same, draws, trimmed

MS = "com.microsoft"
BATCH, QUERIES, HEADS = 2, 4, 2


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
    inputs += [np.array(lengths, np.int32) - 1, np.array(max(lengths), np.int32)]
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
