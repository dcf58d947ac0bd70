from __future__ import annotations

import numpy as np
import pytest

from onnxprune.solvers import embedding
from onnxprune.solvers.patterns import Pattern

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:1x4", "block:4x1"])
def test_counts_and_patterns(text: str) -> None:
    pattern = Pattern.parse(text)
    table = RNG.normal(size=(40, 16)).astype(np.float32)
    zeros = pattern.zeros((1, 40, 16), 0.5)
    mask = embedding.keep(table, np.zeros(40, np.int64), pattern, zeros)
    assert mask.shape == (1, 40, 16)
    assert int((~mask).sum()) == zeros and pattern.holds(mask)


def test_rows_of_any_size_share_alike() -> None:
    table = RNG.normal(size=(40, 64)).astype(np.float32) * np.geomspace(1e-6, 1e6, 40)[:, None]
    mask = embedding.keep(table.astype(np.float32), np.zeros(40, np.int64), Pattern(), 40 * 32)
    assert np.abs(mask[0].mean(1) - 0.5).max() < 0.2


def test_the_smallest_of_a_row_go() -> None:
    table = RNG.normal(size=(10, 32)).astype(np.float32)
    mask = embedding.keep(table, np.zeros(10, np.int64), Pattern(), 160)[0]
    for row, kept in zip(np.abs(table), mask, strict=True):
        assert row[~kept].max() < row[kept].min()


def test_frequent_tokens_keep_more() -> None:
    table = RNG.normal(size=(40, 64)).astype(np.float32)
    counts = np.zeros(40, np.int64)
    counts[:10] = 10_000
    density = embedding.keep(table, counts, Pattern(), 40 * 32)[0].mean(1)
    assert density[:10].min() > density[10:].max()
    assert density[10:].min() > 0.2  # words that were not seen are words of the language too


def test_a_row_of_zeros_costs_nothing() -> None:
    table = RNG.normal(size=(8, 16)).astype(np.float32)
    table[3] = 0
    mask = embedding.keep(table, np.ones(8, np.int64), Pattern(), 16)
    assert not mask[0, 3].any() and mask[0, [0, 1, 2, 4, 5, 6, 7]].all()
