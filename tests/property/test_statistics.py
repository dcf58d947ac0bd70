"""Laws of the statistics: shards add to the whole, and centred moments are covariances."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.calibration.stats import Moments

SHAPES = st.tuples(st.integers(1, 3), st.integers(0, 40), st.integers(1, 6), st.integers(1, 4))


def rows(shape: tuple[int, int, int, int], seed: int, offset: float = 0.0) -> tuple[np.ndarray, ...]:
    """Dense rows, pruned rows and residual differences."""
    groups, count, features, outputs = shape
    rng = np.random.default_rng(seed)
    dense = rng.normal(offset, 1, (groups, count, features)).astype(np.float32)
    pruned = (dense + rng.normal(0.2, 0.3, dense.shape)).astype(np.float32)
    return dense, pruned, rng.normal(0.5, 1, (groups, count, outputs)).astype(np.float32)


def collected(dense: np.ndarray, pruned: np.ndarray, residual: np.ndarray) -> Moments:
    moments = Moments.zeros(dense.shape[0], dense.shape[2])
    moments.add(dense, pruned)
    moments.add_residual("w", residual, pruned)
    moments.add_outputs("w", dense, weight(dense.shape[2]))
    return moments


def weight(features: int) -> np.ndarray:
    """A weight with two outputs, the same for all groups."""
    return np.random.default_rng(features).normal(size=(1, 2, features)).astype(np.float32)


def arrays(moments: Moments) -> list[np.ndarray]:
    return [getattr(moments, name) for name in ("sum_p", "sum_d", "H", "G")] + [
        moments.sum_r["w"],
        moments.R["w"],
        moments.outputs["w"].sum,
        moments.outputs["w"].squares,
    ]


@given(SHAPES, st.integers(0, 2**31), st.lists(st.integers(0, 40), max_size=3))
def test_shards_add_to_the_whole(shape: tuple[int, int, int, int], seed: int, cuts: list[int]) -> None:
    data = rows(shape, seed)
    whole = collected(*data)
    edges = [0, *sorted(min(cut, shape[1]) for cut in cuts), shape[1]]
    parts = [collected(*(a[:, start:stop] for a in data)) for start, stop in pairwise(edges)]
    merged = sum(parts[1:], parts[0])
    one_by_one = Moments.like(whole)
    for start, stop in pairwise(edges):
        one_by_one.add(data[0][:, start:stop], data[1][:, start:stop])
        one_by_one.add_residual("w", data[2][:, start:stop], data[1][:, start:stop])
        one_by_one.add_outputs("w", data[0][:, start:stop], weight(shape[2]))
    for found in (merged, one_by_one):
        assert found.n == whole.n == shape[1]
        for a, b in zip(arrays(found), arrays(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@given(SHAPES, st.integers(0, 2**31))
def test_merging_does_not_change_the_parts(shape: tuple[int, int, int, int], seed: int) -> None:
    first, second = collected(*rows(shape, seed)), collected(*rows(shape, seed + 1))
    before = [a.copy() for a in arrays(first) + arrays(second)]
    merged = first + second
    for a in arrays(merged):
        a += 1.0
    for a, b in zip(arrays(first) + arrays(second), before, strict=True):
        np.testing.assert_array_equal(a, b)


@given(SHAPES.filter(lambda s: s[1] > 1), st.integers(0, 2**31), st.sampled_from([0.0, 1.0, -30.0, 3e3]))
def test_centred_is_the_covariance(shape: tuple[int, int, int, int], seed: int, offset: float) -> None:
    dense, pruned, residual = rows(shape, seed, offset)
    moments = collected(dense, pruned, residual)
    H, G, R = moments.centred("w", True)
    variance = moments.outputs["w"].variance()
    assert R is not None
    for group in range(shape[0]):
        stacked = np.concatenate([dense[group], pruned[group], residual[group]], axis=1).T
        joint = np.cov(stacked.astype(np.float64), bias=True)
        n = shape[2]
        d, p, r = slice(0, n), slice(n, 2 * n), slice(2 * n, None)
        for found, wanted in ((H, joint[p, p]), (G, joint[d, p]), (R, joint[r, p])):
            np.testing.assert_allclose(found[group], wanted, rtol=1e-3, atol=1e-3)
        W = weight(n)[0]
        np.testing.assert_allclose(variance[group], np.diag(W @ joint[d, d] @ W.T), rtol=2e-3, atol=1e-3)


@given(SHAPES, st.integers(0, 2**31))
def test_not_centred_is_the_mean_product(shape: tuple[int, int, int, int], seed: int) -> None:
    dense, pruned, residual = rows(shape, seed)
    H, G, R = collected(dense, pruned, residual).centred("w", False)
    n = max(shape[1], 1)
    np.testing.assert_allclose(H, pruned.swapaxes(1, 2) @ pruned / n, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(G, dense.swapaxes(1, 2) @ pruned / n, rtol=1e-4, atol=1e-5)
    assert R is not None
    np.testing.assert_allclose(R, residual.swapaxes(1, 2) @ pruned / n, rtol=1e-4, atol=1e-5)
