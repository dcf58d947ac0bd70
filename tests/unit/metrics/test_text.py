from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.metrics import METRICS, text

LETTERS = st.lists(st.integers(1, 3), max_size=7)


def test_greedy_merges_before_it_leaves_blanks_out() -> None:
    assert text.greedy(np.array([0, 1, 1, 0, 1, 2, 2, 0, 0])) == [1, 1, 2]
    assert text.greedy(np.array([0, 0])) == []


def test_character_accuracy_by_hand() -> None:
    best = np.array([[1, 0, 2, 2], [3, 3, 3, 0], [0, 0, 0, 0]])  # reads 12, 3 and nothing
    labels = np.array([[1, 2, -100], [1, 2, 3], [-100, -100, -100]])
    metric = METRICS["character-accuracy"]
    (shares,) = metric.parts(np.eye(4, dtype=np.float32)[best], labels)
    # 3 against 123: two letters to put in, of three
    np.testing.assert_allclose(shares, [1, 1 / 3, 1])
    assert metric.total(shares) == pytest.approx(7 / 9)


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("x", "x", 0)],
)
def test_distance_by_hand(a: str, b: str, edits: int) -> None:
    assert text.distance([ord(c) for c in a], [ord(c) for c in b]) == edits


@given(LETTERS, LETTERS)
def test_distance_is_that_of_the_recursion(a: list[int], b: list[int]) -> None:
    @functools.cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = edits(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(edits(i - 1, j) + 1, edits(i, j - 1) + 1, replaced)

    assert text.distance(a, b) == edits(len(a), len(b)) == text.distance(b, a)
