from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.solvers.patterns import Pattern, lowest


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Pattern()),
        ("2:4", Pattern("nm", 2, 4)),
        ("1:16", Pattern("nm", 1, 16)),
        ("block:4x1", Pattern("block", 4, 1, free=True)),
        ("block:4x1,adjacent", Pattern("block", 4, 1)),
        ("block:16x32", Pattern("block", 16, 32, free=True)),
        ("block:1x8", Pattern("block", 1, 8)),  # one row has no neighbours
    ],
)
def test_parse(text: str, pattern: Pattern) -> None:
    assert Pattern.parse(text) == pattern
    assert str(pattern) == text


WRONG = [
    "",
    "2",
    "2:",
    "a:4",
    "2:4 ",
    "block",
    "block:4",
    "4x1",
    "block:4x-1",
    "4:2",
    "4:4",
    "0:4",
    "block:0x1",
    "block:4x1,free",
    "hybrid:1",
    "hybrid:0.0",
    "neuron:0.5",
    "2:4,adjacent",
]


@pytest.mark.parametrize("text", WRONG)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="wanted unstructured, N:M, block:RxC"):
        Pattern.parse(text)


def test_unstructured_takes_the_lowest_and_then_the_first() -> None:
    score = np.array([[[3, 1, 1], [1, 2, 0]]], np.float32)
    mask = Pattern().keep(score, 3)
    np.testing.assert_array_equal(mask, [[[True, False, False], [True, True, False]]])


def test_the_count_is_over_all_groups() -> None:
    score = np.array([[[9, 8]], [[1, 2]]], np.float32)
    np.testing.assert_array_equal(Pattern().keep(score, 2), [[[True, True]], [[False, False]]])


def test_two_of_four() -> None:
    score = np.array([[[4, 3, 2, 1, 5, 5, 5, 5, 0, 0]]], np.float32)
    mask = Pattern.parse("2:4").keep(score, 1)
    np.testing.assert_array_equal(mask[0, 0], [1, 1, 0, 0, 0, 0, 1, 1, 1, 1])


def test_fewer_columns_than_a_group() -> None:
    pattern = Pattern.parse("2:4")
    mask = pattern.keep(np.ones((1, 2, 3), np.float32), 3)
    assert mask.all() and pattern.holds(mask)
    assert pattern.zeros((1, 2, 3), 0.5) == 0


def test_blocks_at_the_edge_compete_by_weight() -> None:
    """3 rows in blocks of 2: the last block has one row, and half the sum of an equally salient one."""
    score = np.array([[[2], [2], [1.9]]], np.float32)
    pattern = Pattern("block", 2, 1)
    np.testing.assert_array_equal(pattern.keep(score, 1)[0, :, 0], [True, True, False])
    np.testing.assert_array_equal(pattern.keep(score * [[[1], [1], [1.2]]], 2)[0, :, 0], [False, False, True])
    assert not pattern.keep(score, 3).any()


def test_blocks_stop_at_the_nearest_count() -> None:
    score = np.arange(8, dtype=np.float32).reshape(1, 8, 1)
    pattern = Pattern("block", 4, 1)
    assert [int((~pattern.keep(score, zeros)).sum()) for zeros in range(9)] == [0, 0, 4, 4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize(
    ("pattern", "sparsity", "zeros"),
    [
        (Pattern(), 0.7, 42),
        (Pattern(), 0.0, 0),
        (Pattern("nm", 2, 4), 0.5, 24),  # 2 x 6 rows, one whole group each of 5 columns
        (Pattern("nm", 2, 4), 0.1, 24),
        (Pattern("nm", 2, 4), 0.0, 0),
        (Pattern("block", 4, 1), 0.5, 30),
    ],
)
def test_zeros(pattern: Pattern, sparsity: float, zeros: int) -> None:
    assert pattern.zeros((2, 6, 5), sparsity) == zeros


def test_zero_zeros_keep_everything() -> None:
    for pattern in (Pattern(), Pattern("nm", 1, 2), Pattern("block", 2, 2)):
        assert pattern.keep(np.zeros((1, 3, 4), np.float32), 0).all()


def test_infinite_saliency_goes_last() -> None:
    score = np.array([[[np.inf, 1, np.inf, 2]]], np.float32)
    np.testing.assert_array_equal(lowest(score, 3), [[[True, True, False, True]]])


def test_blocks_of_infinite_saliency_go_last() -> None:
    score = np.array([[[np.inf, 1, 3, 2]]], np.float32)
    np.testing.assert_array_equal(Pattern("block", 1, 2).keep(score, 2), [[[True, True, False, False]]])


FREE = Pattern("block", 2, 1, free=True)


def test_free_rows_find_their_like() -> None:
    """Rows 0 and 2 want the left half, rows 1 and 3 the right half: neighbours lose half."""
    score = np.array([[[9, 9, 0, 0], [0, 0, 9, 9], [9, 9, 0, 0], [0, 0, 9, 9]]], np.float32)
    mask = FREE.keep(score, 8)
    np.testing.assert_array_equal(mask, score > 0)
    assert FREE.holds(mask) and not FREE.adjacent.holds(mask)


def test_free_blocks_stay_in_their_group() -> None:
    score = np.array([[[9, 0], [0, 9]], [[9, 0], [0, 9]]], np.float32)  # two groups of a convolution
    mask = FREE.keep(score, 4)
    np.testing.assert_array_equal(mask[:, 0], mask[:, 1])
    assert FREE.holds(mask)
    assert not FREE.holds(score > 0)


@pytest.mark.parametrize(
    ("rows", "holds"),
    [
        (["1100", "0011", "1100", "0011"], True),
        (["1100", "0011", "1100", "1011"], False),
        (["1100", "1100", "1100", "1100"], True),
        (["1100", "1100", "1100", "0011", "0011"], True),  # an odd number leaves one over
        (["1100", "1100", "1100"], True),
        (["1100", "0011", "0110"], False),
        (["1100", "0011", "0110", "1100", "0011"], True),
        (["1100", "0011", "0110", "1111", "0000"], False),
    ],
)
def test_free_blocks_are_found_in_a_mask(rows: list[str], holds: bool) -> None:
    mask = np.array([[[bit == "1" for bit in row] for row in rows]])
    assert FREE.holds(mask) == holds


def test_free_blocks_keep_neighbouring_columns() -> None:
    pattern = Pattern("block", 2, 2, free=True)
    assert pattern.holds(np.array([[[1, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 1]]], bool))
    assert not pattern.holds(np.array([[[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]], bool))
