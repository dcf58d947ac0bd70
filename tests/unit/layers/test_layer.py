"""The view of a tensor as a matrix, and back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.layers import MatrixView


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).flatmap(
        lambda split: st.tuples(st.just(tuple(split)), st.permutations(range(len(split))))
    )
)
def test_view_round_trip(drawn: tuple[tuple[int, ...], list[int]]) -> None:
    split, perm = drawn
    size = int(np.prod(split))
    permuted = [split[axis] for axis in perm]
    view = MatrixView(split, split, tuple(perm), (permuted[0], size // permuted[0], 1))
    array = np.arange(size, dtype=np.float32).reshape(split)
    matrix = view.to_matrix(array)
    assert matrix.shape == view.matrix
    np.testing.assert_array_equal(matrix.ravel(), array.transpose(perm).ravel())
    back = view.to_stored(matrix)
    np.testing.assert_array_equal(back, array)
    assert back.flags.c_contiguous
