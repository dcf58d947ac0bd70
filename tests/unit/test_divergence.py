"""The divergences against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, rel_entr, softmax

from onnxprune.divergence import divergence, total_divergence, without_padding
from onnxprune.outputs import EXACT, FEATURES, LOGITS, NONE, PROBABILITIES, OutputKind

RNG = np.random.default_rng(0)
LOGIT, PROBABILITY, FEATURE = OutputKind(LOGITS), OutputKind(PROBABILITIES), OutputKind(FEATURES)


def exact_kl(a: np.ndarray, b: np.ndarray, axis: int = -1) -> float:
    return float(rel_entr(softmax(a.astype(np.float64), axis), softmax(b.astype(np.float64), axis)).sum())


def test_kl_by_hand() -> None:
    p, q = np.array([[0.5, 0.5]], np.float32), np.array([[0.25, 0.75]], np.float32)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(p, q, PROBABILITY) == pytest.approx(expected, rel=1e-6)
    assert divergence(np.log(p), np.log(q) + 7, LOGIT) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kl_against_scipy(scale: float, dtype: type) -> None:
    a = RNG.normal(size=(50, 300)).astype(dtype) * 3
    b = (a + scale * RNG.normal(size=a.shape)).astype(dtype)
    expected = exact_kl(a, b)
    assert divergence(a, b, LOGIT) == pytest.approx(expected, rel=1e-3, abs=50 * 1e-8)
    p, q = softmax(a, axis=1), softmax(b, axis=1)
    assert divergence(p, q, PROBABILITY) == pytest.approx(expected, rel=2e-3, abs=50 * 1e-8)


def test_kl_of_large_offsets_keeps_its_digits() -> None:
    a = RNG.normal(size=(20, 10)).astype(np.float32)
    b = a + 1e-2 * RNG.normal(size=a.shape).astype(np.float32)
    assert divergence(a + 1000, b - 1000, LOGIT) == pytest.approx(exact_kl(a + 1000, b - 1000), rel=1e-3)


def test_kl_over_another_axis() -> None:
    a, b = RNG.normal(size=(2, 2, 5, 4, 3)).astype(np.float32)
    kind = OutputKind(LOGITS, 1)
    assert divergence(a, b, kind) == pytest.approx(exact_kl(a, b, 1), rel=1e-4)


@given(arrays(np.float32, (3, 7), elements=st.floats(-1e4, 1e4, width=32)))
def test_nothing_differs_from_itself(a: np.ndarray) -> None:
    for kind in (LOGIT, FEATURE, OutputKind(EXACT)):
        assert divergence(a, a, kind) == 0
    p = softmax(a, axis=1)
    assert divergence(p, p, PROBABILITY) == pytest.approx(0, abs=1e-6)


@given(arrays(np.float32, (2, 3, 7), elements=st.floats(-100, 100, width=32)))
def test_kl_is_never_negative_and_bounded(pair: np.ndarray) -> None:
    for kind, (a, b) in ((LOGIT, pair), (PROBABILITY, softmax(pair, axis=2))):
        assert 0 <= divergence(a, b, kind) <= 3 * 29


def test_batches_add() -> None:
    a, b = RNG.normal(size=(2, 12, 9)).astype(np.float32)
    for kind in (LOGIT, OutputKind(EXACT)):
        parts = sum(divergence(a[i : i + 4], b[i : i + 4], kind) for i in (0, 4, 8))
        assert parts == pytest.approx(divergence(a, b, kind), rel=1e-6)


def test_many_classes_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    a, b = RNG.normal(size=(2, 11, 64)).astype(np.float32)
    whole = divergence(a, b, LOGIT)
    monkeypatch.setattr(sys.modules["onnxprune.divergence"], "_CHUNK", 100)
    assert divergence(a, b, LOGIT) == pytest.approx(whole, rel=1e-12)


def test_underflow_is_bounded_and_infinity_is_masking() -> None:
    certain, wrong = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    assert divergence(certain, wrong, PROBABILITY) == pytest.approx(-math.log(1e-12), rel=1e-3)
    masked = np.array([[1.0, 2.0, -np.inf]], np.float32)
    assert divergence(masked, masked, LOGIT) == 0
    assert divergence(masked, masked[:, [1, 0, 2]], LOGIT) == pytest.approx(
        exact_kl(masked, masked[:, [1, 0, 2]])
    )


@pytest.mark.parametrize("kind", [LOGIT, PROBABILITY, FEATURE])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_infinitely_far(kind: OutputKind, bad: float) -> None:
    a = softmax(RNG.normal(size=(4, 5)).astype(np.float32), axis=1)
    b = a.copy()
    b[2, 3] = bad
    with np.errstate(all="raise"):
        assert divergence(a, b, kind) == math.inf


def test_features() -> None:
    a = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    b = np.array([[3.0, 4.0], [0.0, 5.0]], np.float32)
    assert divergence(a, b, FEATURE) == pytest.approx(2 * 25 / 25)
    assert divergence(b, a, FEATURE) == pytest.approx(2 * 25 / 50)
    assert divergence(0 * a, b, FEATURE) == 2
    assert divergence(0 * a, 0 * b, FEATURE) == 0
    same = np.array([[1.0, -np.inf], [2.0, 1.0]], np.float32)
    assert divergence(same, same, FEATURE) == 0
    assert divergence(np.float32(2) * np.ones(()), np.ones(()), FEATURE) == pytest.approx(0.25)


def test_features_of_fp16_do_not_overflow() -> None:
    a = np.full((2, 8), 60000, np.float16)
    assert divergence(a, np.zeros_like(a), FEATURE) == pytest.approx(2)
    huge = np.full((2, 8), 1e30, np.float32)
    assert divergence(huge, 0 * huge, FEATURE) == pytest.approx(2)


def test_exact_and_not_compared() -> None:
    a, b = np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]])
    assert divergence(a, b, OutputKind(EXACT)) == pytest.approx(2 * 0.25)
    words = np.array(["a", "b"], dtype=object)
    assert divergence(words, words[::-1], OutputKind(EXACT)) == 2
    assert divergence(a, b, OutputKind(NONE)) == 0
    assert divergence(np.zeros((3, 0)), np.zeros((3, 0)), FEATURE) == 0
    assert divergence(np.zeros((0, 5)), np.zeros((0, 5)), LOGIT) == 0


def test_another_shape_counts_one_per_row() -> None:
    assert divergence(np.zeros((7, 4), np.float32), np.zeros((5, 4), np.float32), FEATURE) == 7


def test_total_takes_classes_alone() -> None:
    a, b = RNG.normal(size=(2, 4, 6)).astype(np.float32)
    kinds = (FEATURE, LOGIT, OutputKind(NONE))
    assert total_divergence(kinds, [a, a, None], [2 * a, b, None]) == divergence(a, b, LOGIT)
    assert total_divergence(kinds[::2], [a, None], [b, None]) == divergence(a, b, FEATURE)


def test_boxes_beside_scores_count_in_nats() -> None:
    scores, boxes = RNG.normal(size=(2, 4, 9, 3)).astype(np.float32), RNG.normal(size=(2, 4, 9, 4))
    classes = OutputKind(LOGITS, 2, information=0.7)
    alone = divergence(*scores, classes)
    share = divergence(*boxes, FEATURE) / 4  # of one image
    found = total_divergence([classes, FEATURE], [scores[0], boxes[0]], [scores[1], boxes[1]])
    assert found == pytest.approx(alone + share * 0.7 * 36)  # 4 images of 9 rows
    spoken_for = replace(FEATURE, counts=False)
    assert total_divergence([classes, spoken_for], [scores[0], boxes[0]], [scores[1], boxes[1]]) == alone
    lost = np.where(boxes[0] > 2, -np.inf, boxes[0])  # dense infinities: no candidate is infinitely bad
    assert total_divergence([classes, FEATURE], [scores[0], lost], [scores[1], boxes[1]]) == alone
    broken = np.full_like(boxes[0], np.nan)
    assert total_divergence([classes, FEATURE], [scores[0], boxes[0]], [scores[1], broken]) == math.inf
    empty = np.zeros((0, 9, 3), np.float32)
    assert total_divergence([classes, FEATURE], [empty, boxes[0]], [empty, broken]) == 0
    halves = [
        total_divergence([classes, FEATURE], [scores[0][i], boxes[0][i]], [scores[0][i], boxes[1][i]])
        for i in (slice(0, 2), slice(2, 4))
    ]
    assert sum(halves) == pytest.approx(share * 0.7 * 36, rel=0.1)  # batches add


def test_padded_tokens_do_not_count() -> None:
    mask = np.array([[True, True, False], [True, False, False]])
    a, b = RNG.normal(size=(2, 2, 3, 5)).astype(np.float32)
    for kind in (OutputKind(LOGITS, 2), FEATURE):
        expected = divergence(a[mask], b[mask], OutputKind(kind.family))
        assert total_divergence([kind], [a], [b], mask) == pytest.approx(expected)
    ids = np.arange(6).reshape(2, 3)
    changed = np.where(mask, ids, -1)
    assert total_divergence([OutputKind(EXACT)], [ids], [changed], mask) == 0


def test_padding_stays_where_rows_are_no_tokens() -> None:
    mask = np.ones((2, 3), bool)
    for value, kind in (
        (np.zeros((2, 8), np.float32), FEATURE),  # pooled
        (np.zeros((2, 3), np.float32), OutputKind(LOGITS, 1)),  # classes are the positions
        (np.zeros((2, 3, 4, 4), np.float32), OutputKind(LOGITS, 1)),  # classes on axis 1
    ):
        assert without_padding(value, kind, mask)[0] is value
    assert without_padding([1], OutputKind(NONE), mask)[0] == [1]


def test_log_softmax_is_a_logit() -> None:
    a, b = RNG.normal(size=(2, 4, 6)).astype(np.float32)
    logs = divergence(log_softmax(a, axis=1), log_softmax(b, axis=1), LOGIT)
    assert logs == pytest.approx(divergence(a, b, LOGIT), rel=1e-5)


def test_parts_of_another_scale_count_alike() -> None:
    a = np.array([[[100.0], [200.0], [0.1], [0.2]]], np.float32)
    b = a + np.array([[[0.0], [0.0], [0.1], [0.2]]], np.float32)
    assert divergence(a, b, FEATURE) < 1e-5
    parts = OutputKind(FEATURES, axis=1, cuts=(2,))
    assert divergence(a, b, parts) == pytest.approx((0 + 1) / 2)
    assert divergence(np.concatenate([a, a]), np.concatenate([b, b]), parts) == pytest.approx(1)
    short = a[:, :2]  # another length: there is nothing to cut
    assert divergence(short, 2 * short, parts) == pytest.approx(1)


def test_parts_that_are_no_columns_keep_their_rows() -> None:
    value, mask = np.ones((2, 3, 4), np.float32), np.ones((2, 3), bool)
    kind = OutputKind(FEATURES, axis=1, cuts=(2,))
    same, unchanged = without_padding(value, kind, mask)
    assert same is value and unchanged is kind
    found, kind = without_padding(value, OutputKind(FEATURES, axis=2, cuts=(2,)), mask)
    assert kind.parts(found.shape) == [(slice(None), slice(0, 2)), (slice(None), slice(2, 4))]


def test_a_part_with_nothing_in_it_does_not_count_for_all() -> None:
    """An image without objects: its scores are all but zero, and so is what is wrong with them."""
    kind = OutputKind(FEATURES, axis=1, cuts=(2,), squares=(1e4, 0.25))
    a = np.array([[[100.0], [200.0], [1e-7], [1e-7]]], np.float32)
    b = a + np.array([[[0.0], [0.0], [1e-4], [1e-4]]], np.float32)
    assert divergence(a, b, kind) < 1e-6
    full = np.array([[[100.0], [200.0], [0.5], [0.5]]], np.float32)
    assert divergence(full, 2 * full, kind) == pytest.approx(1)
