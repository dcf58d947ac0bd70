from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.metrics import METRICS, classes

SCORES = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 2], [5, 4, 0]], dtype=np.float32)  # answers 0 1 2 0
LABELS = np.array([0, 1, 1, 1])


def value(name: str, scores: np.ndarray, labels: np.ndarray) -> float:
    return METRICS[name].total(*METRICS[name].parts(scores, labels))


def test_by_hand() -> None:
    assert value("accuracy", SCORES, LABELS) == 0.5
    # right, answers, labels: class 0 has 1, 2, 1; class 1 has 1, 1, 3; class 2 has 0, 1, 0
    assert value("precision", SCORES, LABELS) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert value("recall", SCORES, LABELS) == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert value("f1", SCORES, LABELS) == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)


def test_top_5_by_hand() -> None:
    scores = np.array([[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [0, 0, 0, 0, 0, 0]], dtype=np.float32)
    assert value("top-5", scores, np.array([4, 5, 5])) == pytest.approx(1 / 3)
    assert value("top-5", scores[:, :3], np.array([0, 2, 1])) == 1.0  # fewer than five classes
    assert value("top-5", np.full((1, 6), np.nan, np.float32), np.array([0])) == 0.0


def test_perplexity_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]], dtype=np.float32))
    # p of the labels: 1/2 and 1/8, so exp(-(log 1/2 + log 1/8) / 2) = 4
    assert value("perplexity", logits, np.array([0, 0])) == pytest.approx(4.0, rel=1e-6)
    assert value("perplexity", logits + 100, np.array([0, 0])) == pytest.approx(4.0, rel=1e-4)
    assert value("perplexity", np.zeros((3, 7), np.float32), np.array([0, 3, 6])) == pytest.approx(7.0)
    huge = np.array([[0, 1e30]], dtype=np.float32)
    assert value("perplexity", huge, np.array([0])) == math.inf


def test_probabilities_that_underflowed_are_finite() -> None:
    assert np.isfinite(classes.as_logits(np.array([0.0, 1.0]))).all()


def reference(answers: list[int], labels: list[int]) -> tuple[float, float, float]:
    """Count with loops: for each class that occurs, true and false positives and false negatives."""
    found = sorted(set(answers) | set(labels))
    shares = []
    for c in found:
        tp = sum(a == c == b for a, b in zip(answers, labels, strict=True))
        fp = sum(a == c != b for a, b in zip(answers, labels, strict=True))
        fn = sum(a != c == b for a, b in zip(answers, labels, strict=True))
        shares.append(
            (tp / (tp + fp) if tp + fp else 0, tp / (tp + fn) if tp + fn else 0, 2 * tp / (2 * tp + fp + fn))
        )
    return tuple(sum(column) / len(found) for column in zip(*shares, strict=True))  # type: ignore[return-value]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_agrees_with_counting(rows: list[tuple[int, int]]) -> None:
    answers, labels = map(list, zip(*rows, strict=True))
    scores = np.eye(6, dtype=np.float32)[answers]
    found = [value(name, scores, np.array(labels)) for name in ("precision", "recall", "f1")]
    assert found == pytest.approx(reference(answers, labels))


@given(st.integers(1, 29), st.integers(0, 2**32 - 1))
def test_batches_add(cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=(30, 8)).astype(np.float32), rng.integers(0, 8, 30)
    for name, metric in METRICS.items():
        if metric.form == "classes":
            parts = [metric.parts(scores[rows], labels[rows]) for rows in (slice(cut), slice(cut, None))]
            joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
            assert metric.total(*joined) == pytest.approx(value(name, scores, labels))
