"""The statistics of every form are what numpy says; padding never counts; batches add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxprune.attention.find import find_attention
from onnxprune.attention.statistics import (
    Attention,
    BlockStatistics,
    head_sums,
    observe,
    output_weights,
    received,
)
from onnxprune.calibration.store import ArrayStore
from onnxprune.io import load
from onnxprune.model import Model
from tests.unit.attention.forms import BATCH, HEADS, NAMES, SIZE, TOKENS, WIDTH, Case, make


@pytest.fixture
def store() -> Iterator[ArrayStore]:
    with ArrayStore(2**30) as held:
        yield held


def observed(case: Case, store: ArrayStore, batches: int = 1) -> Attention:
    blocks, _ = find_attention(case.model)
    skipped: list[str] = []
    found = observe(
        case.model,
        blocks,
        [case.feed] * batches,
        [case.mask] * batches,
        store,
        threads=1,
        on_skip=lambda _, reason: skipped.append(reason),
    )
    assert not skipped
    return found[0]


@pytest.mark.parametrize("name", NAMES)
def test_against_numpy(name: str, store: ArrayStore) -> None:
    case = make(name)
    found = observed(case, store)
    real = case.mask if case.mask is not None else np.ones((BATCH, TOKENS), bool)
    P, context, wo = case.P.astype(np.float64), case.context.astype(np.float64), case.weights["wo"]
    close = {"rtol": 2e-4, "atol": 1e-6}
    wanted = [P[b][:, real[b]].mean((0, 1)) for b in range(BATCH)]
    np.testing.assert_allclose(found.received[0], wanted, **close)
    np.testing.assert_allclose(found.received[0].sum(1), 1, rtol=1e-5)
    sums = found.sums
    assert sums.queries == real.sum() and sums.heads == HEADS
    for head in range(HEADS):
        rows = np.concatenate([P[b, head, real[b]] for b in range(BATCH)])
        np.testing.assert_allclose(sums.head_mass[head], (1 - rows[:, 0]).mean(), **close)
        logs = np.log(np.where(rows > 0, rows, 1))
        np.testing.assert_allclose(sums.head_entropy[head], -(rows * logs).sum(1).mean(), **close)
        o = np.concatenate([context[b, head, real[b]] for b in range(BATCH)])
        np.testing.assert_allclose(sums.head_norm[head] ** 2, (o**2).sum(1).mean(), **close)
        added = o @ wo[head * SIZE : (head + 1) * SIZE]
        np.testing.assert_allclose(sums.head_effect[head] ** 2, (added**2).sum(1).mean(), **close)
    output = (context.swapaxes(1, 2).reshape(BATCH, TOKENS, WIDTH) @ wo)[real]
    ratio = np.linalg.norm(output) / np.linalg.norm(case.feed["x"][real])
    assert found.sums.contribution == pytest.approx(ratio, rel=1e-4)


def test_batches_add(store: ArrayStore) -> None:
    case = make("scaled before, mask added")
    one, three = observed(case, store), observed(case, store, batches=3)
    assert three.sums.queries == 3 * one.sums.queries and len(three.received) == 3
    np.testing.assert_allclose(three.sums.effect, 3 * one.sums.effect, rtol=1e-6)
    np.testing.assert_allclose(three.sums.head_entropy, one.sums.head_entropy, rtol=1e-6)
    assert three.sums.contribution == pytest.approx(one.sums.contribution)


def test_an_operator_that_hides_its_probabilities_is_skipped(store: ArrayStore) -> None:
    node = helper.make_node(
        "Attention", ["x", "w", "b", "", "past"], ["y", "present"], domain="com.microsoft", num_heads=2
    )
    feed = {"x": np.ones((2, 5, 8), np.float32), "past": np.ones((2, 2, 2, 3, 4), np.float32)}
    inputs = [helper.make_tensor_value_info(name, 1, array.shape) for name, array in feed.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    for name, shape in (("w", (8, 24)), ("b", (24,))):
        graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model, said = Model(helper.make_model(graph, opset_imports=opsets, ir_version=10)), list[str]()
    blocks, _ = find_attention(model)
    found = observe(model, blocks, [feed], [None], store, on_skip=lambda _, reason: said.append(reason))
    assert len(blocks) == 1 and not found
    assert said == ["Attention(y): its keys and values of the past hide its probabilities"]


def test_two_blocks_of_a_real_model(
    digits_transformer: Path, calibration_tokens_npz: Path, store: ArrayStore
) -> None:
    model = load(digits_transformer)
    tokens = np.load(calibration_tokens_npz)["tokens"][:32]
    blocks, _ = find_attention(model)
    found = observe(model, blocks, _feeds(np.split(tokens, 2)), [None, None], store)
    assert [item.block for item in found] == list(blocks)
    for item in found:
        assert item.sums.queries == tokens.size and item.sums.heads == 4
        assert (item.sums.head_effect > 0).all() and item.sums.contribution is not None
        assert all(part.shape == (16, tokens.shape[1]) for part in item.received)


def _feeds(parts: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    return [{"tokens": part} for part in parts]


def test_output_projections_as_matrices() -> None:
    case = make("scaled after")
    (weight,) = output_weights(case.model, find_attention(case.model)[0]).values()
    np.testing.assert_array_equal(weight, case.weights["wo"])
    assert output_weights(case.model, ()) == {}


@given(seed=st.integers(0, 1000), real=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_padding_changes_nothing(seed: int, real: list[int]) -> None:
    """What stands in padded queries and keys does not matter, and the shards are those of the samples."""
    rng = np.random.default_rng(seed)
    heads, keys, size = 2, 6, 3
    mask = np.arange(keys) < np.array(real)[:, None]
    scores = np.where(mask[:, None, None], rng.normal(size=(len(real), heads, keys, keys)), -np.inf)
    P = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    context = rng.normal(size=(len(real), heads, keys, size)).astype(np.float32)
    W = rng.normal(size=(heads, size, 4)).astype(np.float32)
    P = P.astype(np.float32)
    whole = head_sums(P, context, mask, mask, W)
    parts = [
        head_sums(
            P[i : i + 1, :, :n, :n], context[i : i + 1, :, :n], mask[i : i + 1, :n], mask[i : i + 1, :n], W
        )
        for i, n in enumerate(real)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    for name in ("queries", "mass", "entropy", "norm", "effect"):
        np.testing.assert_allclose(getattr(whole, name), getattr(total, name), rtol=1e-5, atol=1e-5)
    found = received(P, mask)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert not found[~mask].any()


def test_what_is_not_known_is_none() -> None:
    zeros = np.zeros(2)
    empty = BlockStatistics(0, zeros, zeros, zeros, zeros)
    assert empty.contribution is None and not empty.head_entropy.any()
