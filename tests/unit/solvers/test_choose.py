"""From scores to masks; that counts are exact for any input is in tests/property/test_masks.py."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.solvers.choose import among, choose, luck
from onnxprune.solvers.patterns import Pattern

SCORE = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)


def test_without_luck_it_is_the_pattern() -> None:
    for text in ("unstructured", "2:4", "block:2x1", "neuron"):
        pattern = Pattern.parse(text)
        np.testing.assert_array_equal(choose(SCORE, 8, pattern), pattern.keep(SCORE, 8))


def test_rows_lose_equally() -> None:
    mask = choose(SCORE, 9, Pattern(), per_row=True)
    np.testing.assert_array_equal((~mask).sum(-1).ravel(), [2, 2, 2, 1, 1, 1])
    np.testing.assert_array_equal(choose(SCORE, 8, Pattern.parse("neuron"), per_row=True).all(-1)[0, :2], 0)


def test_two_weights_by_hand() -> None:
    """Of two weights one is kept, in proportion to the scores 1 and 3."""
    score = np.array([[[1.0, 3.0]]])
    kept = [choose(score, 1, Pattern(), seed=seed)[0, 0] for seed in range(2000)]
    assert np.mean(kept, axis=0)[1] == pytest.approx(0.75, abs=0.03)
    assert (np.sum(kept, axis=1) == 1).all()


def test_drawn_one_after_the_other_without_replacement() -> None:
    """Two of three kept, scores 1, 1, 2: the last goes if the others are drawn first, 2 * (1/4 * 1/3)."""
    score = np.array([[[1.0, 1.0, 2.0]]])
    gone = np.mean([~choose(score, 1, Pattern(), seed=seed)[0, 0] for seed in range(3000)], axis=0)
    np.testing.assert_allclose(gone, [5 / 12, 5 / 12, 1 / 6], atol=0.03)


def test_what_scores_nothing_goes_first() -> None:
    score = np.ones((1, 4, 8))
    score[0, :, ::2] = 0
    for seed in range(5):
        mask = choose(score, 16, Pattern(), seed=seed)
        np.testing.assert_array_equal(mask, score > 0)


@pytest.mark.parametrize("text", ["2:4", "block:3x1", "block:2x2", "block:2x2,adjacent", "neuron"])
def test_luck_keeps_the_pattern(text: str) -> None:
    pattern = Pattern.parse(text)
    score = np.random.default_rng(0).random((2, 6, 8))
    zeros = pattern.zeros(score.shape, 0.5)
    masks = [choose(score, zeros, pattern, seed=seed) for seed in (0, 0, 1)]
    assert all(pattern.holds(mask) and int((~mask).sum()) == zeros for mask in masks)
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def test_what_goes_together_shares_its_luck() -> None:
    blocks = luck((1, 4, 6), Pattern.parse("block:2x3,adjacent"), 0)
    np.testing.assert_array_equal(blocks, np.kron(blocks[:, ::2, ::3], np.ones((2, 3))))
    rows = luck((2, 4, 6), Pattern.parse("neuron"), 0)
    np.testing.assert_array_equal(rows, np.repeat(rows[:, :, :1], 6, 2))
    assert len(np.unique(rows)) == 8
    assert len(np.unique(luck((2, 4, 6), Pattern.parse("2:4"), 0))) == 48


def test_candidates_go_first_in_their_own_order() -> None:
    candidates = np.broadcast_to(
        np.array([[[True], [False], [True]], [[False], [False], [True]]]), SCORE.shape
    )
    found = among(SCORE, candidates)
    order = np.argsort(found, axis=None)
    inside, outside = SCORE[candidates], SCORE[~candidates]
    np.testing.assert_array_equal(SCORE.ravel()[order], [*np.sort(inside), *np.sort(outside)])
