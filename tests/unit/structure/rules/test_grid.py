"""Axes that belong together when a value is reshaped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.structure.labels import RuleError
from onnxprune.structure.rules.grid import blocks, only_axis, rows, unfold


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms())
def test_blocks_hold_the_same_elements(old: list[int], random: object) -> None:
    new = [size for size in old if size > 1]
    merged = [int(np.prod(new[:2])), *new[2:]] if len(new) > 1 else new or [1]
    seen_old, seen_new = [], []
    for left, right in blocks(old, merged):
        assert np.prod([old[a] for a in left]) == np.prod([merged[a] for a in right])
        seen_old += left
        seen_new += right
    assert seen_old == [a for a, n in enumerate(old) if n > 1]
    assert seen_new == [a for a, n in enumerate(merged) if n > 1]


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(RuleError):
        list(blocks((2, 3), (5,)))
    with pytest.raises(RuleError):
        list(blocks((0, 3), (3, 0)))


def test_labels_on_a_grid() -> None:
    full = unfold(np.array([7, 8, 9]), 1, (2, 3), (6,))
    assert full.tolist() == [7, 8, 9, 7, 8, 9] and only_axis(full.reshape(2, 3)) == 1
    assert only_axis(np.arange(6).reshape(2, 3)) is None
    assert rows(np.arange(6).reshape(2, 3), 1).tolist() == [[0, 3], [1, 4], [2, 5]]
