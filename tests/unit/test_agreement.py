"""Formulas on cases computed by hand, and everything real models throw at them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.agreement import Agreement, AgreementSums
from onnxprune.outputs import EXACT, FEATURES, LOGITS, PROBABILITIES, output_kind

RNG = np.random.default_rng(0)


def over(name: str, *pairs: tuple[Any, Any], mask: np.ndarray | None = None) -> Agreement:
    """Agreement over batches ``(a, b)`` of an output ``name``."""
    sums = AgreementSums(name, output_kind(name, pairs[0][0], None))
    for a, b in pairs:
        sums.add(a, b, mask)
    return sums.result()


def one(a: Any, b: Any, name: str = "y") -> Agreement:
    """Agreement over a single batch."""
    return over(name, (a, b))


def logits(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_identical_models() -> None:
    value = RNG.normal(size=(40, 7)).astype(np.float32)
    same = one(value, value, "logits")
    assert same.kind.family == LOGITS
    assert (same.rows, same.top1, same.kappa, same.kl, same.max_abs, same.relative_error) == (
        40,
        1,
        1,
        0,
        0,
        0,
    )
    assert same.cosine == pytest.approx(1) and same.correlation == pytest.approx(1)
    assert same.finite and same.note == "" and same.equal is None


def test_features_by_hand() -> None:
    a, b = logits([3, 4], [1, 0]), logits([3, 4], [0, 2])
    found = one(a, b)
    assert found.kind.family == FEATURES
    assert found.cosine == pytest.approx((1 + 0) / 2)
    assert found.relative_error == pytest.approx(np.sqrt(5 / 26))
    assert found.max_abs == 2
    # mean rows (2, 2) and (1.5, 3): centred a = ((1, 2), (-1, -2)), b = ((1.5, 1), (-1.5, -1))
    assert found.correlation == pytest.approx(7 / np.sqrt(10 * 6.5))
    assert found.kl is None and found.top1 is None and found.kappa is None


def test_classes_by_hand() -> None:
    a = np.log(logits([0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]))
    b = np.log(logits([0.25, 0.5, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]))
    found = one(a, b, "logits")
    assert found.top1 == 0.75
    # winners 0 1 2 0 against 1 1 2 0: chance (2 * 1 + 1 * 2 + 1 * 1) / 16
    assert found.kappa == pytest.approx((0.75 - 5 / 16) / (1 - 5 / 16))
    assert found.kl == pytest.approx((0.5 * np.log(2) + 0.25 * np.log(0.5)) / 4, rel=1e-5)


def test_collapse_onto_the_common_class_has_no_kappa_left() -> None:
    """A recogniser that answers "blank" everywhere agrees with most of a CTC output."""
    a = np.eye(5, dtype=np.float32)[RNG.choice(5, size=(4, 50), p=[0.8, 0.05, 0.05, 0.05, 0.05])]
    b = np.zeros_like(a)
    b[..., 0] = 1
    found = one(a, b)
    assert found.kind.family == PROBABILITIES and found.rows == 200
    assert found.top1 > 0.7 and found.kappa == pytest.approx(0)


def test_collapse_of_features_has_no_correlation_left() -> None:
    a = 10 + RNG.normal(size=(50, 16)).astype(np.float32)
    found = one(a, np.full_like(a, 10))
    assert found.cosine > 0.99 and found.correlation == 0


def test_one_class_everywhere_has_no_kappa() -> None:
    a = logits([2, 1], [3, 1])
    found = one(a, a - 1, "logits")
    assert (found.top1, found.kappa) == (1, None)


def test_batches_add_up() -> None:
    a, b = RNG.normal(size=(2, 30, 6)).astype(np.float32)
    whole = one(a, b, "logits")
    parts = [slice(0, 7), slice(7, 8), slice(8, 30)]
    split = over("logits", *((a[p], b[p]) for p in parts))
    for name in ("rows", "cosine", "correlation", "relative_error", "max_abs", "kl", "top1", "kappa"):
        assert getattr(split, name) == pytest.approx(getattr(whole, name), rel=1e-9), name


def test_rows_of_changing_width() -> None:
    """Classes may be positions (start_logits), features may be maps of any size."""
    first = [RNG.normal(size=(3, n)).astype(np.float32) for n in (4, 9)]
    for name in ("start_logits", "y"):
        found = over(name, *((v, v + 0.01) for v in first))
        assert found.rows == 6 and found.correlation == pytest.approx(1, abs=1e-3)


def test_segmentation_counts_pixels() -> None:
    a = RNG.normal(size=(2, 5, 4, 3)).astype(np.float32)
    found = one(a, a, "logits")
    assert (found.kind.axis, found.rows) == (1, 24)


@pytest.mark.parametrize("name", ["y", "logits"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_in_the_second(name: str, bad: float) -> None:
    a = RNG.normal(size=(10, 4)).astype(np.float32)
    b = a.copy()
    b[3, 2] = bad
    with np.errstate(all="raise"):
        found = one(a, b, name)
    assert not found.finite and found.note == ""
    assert found.cosine is not None and np.isfinite(found.cosine) and found.max_abs == 0
    if name == "logits":
        assert found.top1 == pytest.approx(0.9) and found.kl == 0


def test_not_finite_in_the_first_is_not_the_seconds_fault() -> None:
    a = RNG.normal(size=(10, 4)).astype(np.float32)
    b = a.copy()
    a[3, 2] = np.nan
    for other in (a, b):
        found = one(a, other)
        assert found.finite and "reference model gives NaN" in found.note
        assert found.max_abs == 0


def test_masked_scores_agree() -> None:
    a = logits([1, 2, -np.inf], [3, 1, -np.inf])
    with np.errstate(all="raise"):
        found = one(a, a, "logits")
    assert found.finite and found.note == "" and (found.top1, found.kl, found.max_abs) == (1, 0, 0)


def test_exact_values() -> None:
    found = one(np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]]))
    assert (found.kind.family, found.equal, found.rows, found.cosine) == (EXACT, 0.75, 2, None)
    words = np.array(["a", "b"], dtype=object)
    assert one(words, words).equal == 1
    assert one(np.array([True]), np.array([False])).equal == 0


def test_single_values_are_compared_as_one_vector() -> None:
    a, b = logits([1], [2], [3]), logits([1], [2], [-3])
    assert one(a, b).cosine == pytest.approx((1 + 4 - 9) / 14)
    assert one(np.array(2.0, np.float32), np.array(2.0, np.float32)).cosine == pytest.approx(1)
    assert one(a[:, 0], b[:, 0]).rows == 3


def test_zero_reference() -> None:
    zero, other = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert (one(zero, zero).relative_error, one(zero, zero).cosine) == (0, 1)
    assert (one(zero, other).relative_error, one(zero, other).cosine) == (None, 0)


def test_half_precision_does_not_overflow() -> None:
    a = np.full((4, 64), 60000, np.float16)
    found = one(a, -a)
    assert found.cosine == pytest.approx(-1) and found.relative_error == pytest.approx(2)


def test_shapes_that_differ_are_named() -> None:
    a = [np.ones((n, 4), np.float32) for n in (3, 5)]
    found = over("y", (a[0], a[0]), (a[1], a[0]))
    assert found.rows == 3 and "1 of 2 batches (such as [5, 4] and [3, 4])" in found.note
    lost = one(np.ones((3, 4), np.float32), np.ones((3, 4), np.int64))
    assert lost.rows == 0 and lost.cosine is None and "differs" in lost.note


def test_empty_outputs() -> None:
    found = one(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
    assert found.rows == 0 and found.cosine is None and "empty" in found.note


def test_padded_tokens_do_not_count() -> None:
    mask = np.array([[True, True, False], [True, False, False]])
    a = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    b = a.copy()
    b[~mask] = 99
    found = over("last_hidden_state", (a, b), mask=mask)
    assert found.rows == 3 and found.max_abs == 0
