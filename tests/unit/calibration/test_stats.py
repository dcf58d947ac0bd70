"""Moments by example; their laws are in tests/property/test_statistics.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune.calibration.stats import Moments


def test_sums_by_hand() -> None:
    moments = Moments.zeros(1, 2)
    dense, pruned = np.array([[[1, 2], [3, 4]]], np.float32), np.array([[[1, 0], [0, 2]]], np.float32)
    moments.add(dense, pruned)
    assert moments.n == 2
    np.testing.assert_array_equal(moments.sum_d, [[4, 6]])
    np.testing.assert_array_equal(moments.sum_p, [[1, 2]])
    np.testing.assert_array_equal(moments.H, [[[1, 0], [0, 4]]])
    np.testing.assert_array_equal(moments.G, [[[1, 6], [2, 8]]])  # dense by pruned
    moments.add_residual("w", np.array([[[1], [-1]]], np.float32), pruned)
    np.testing.assert_array_equal(moments.sum_r["w"], [[0]])
    np.testing.assert_array_equal(moments.R["w"], [[[1, -2]]])


def test_equal_streams_have_equal_moments() -> None:
    rows = np.random.default_rng(0).normal(size=(2, 30, 4)).astype(np.float32)
    moments = Moments.zeros(2, 4)
    moments.add(rows, rows)
    assert moments.G is None
    H, G, _ = moments.centred("w", True)
    assert H is G
    np.testing.assert_array_equal(moments.H, moments.H.swapaxes(1, 2))


def test_residuals_of_one_shard_only() -> None:
    rows = np.ones((1, 3, 2), np.float32)
    first, second = Moments.zeros(1, 2), Moments.zeros(1, 2)
    first.add(rows, rows)
    second.add(rows, rows)
    second.add_residual("w", rows, rows)
    for merged in (first + second, second + first):
        np.testing.assert_array_equal(merged.R["w"], second.R["w"])
        np.testing.assert_array_equal(merged.sum_r["w"], second.sum_r["w"])
        assert merged.n == 6


@pytest.mark.parametrize("first_moved", [False, True])
def test_rows_of_equal_streams_count_in_both_products(first_moved: bool) -> None:
    rows = np.ones((1, 3, 2), np.float32)
    same, other = Moments.zeros(1, 2), Moments.zeros(1, 2)
    same.add(rows, rows)
    other.add(rows, rows * 2)
    merged = other + same if first_moved else same + other
    one = Moments.zeros(1, 2)
    for part in (rows * 2, rows) if first_moved else (rows, rows * 2):
        one.add(rows, rows if part is rows else part)
    for found in (merged, one):
        assert found.G is not None
        np.testing.assert_array_equal(found.G, np.full((1, 2, 2), 3 + 6))
        np.testing.assert_array_equal(found.H, np.full((1, 2, 2), 3 + 12))
    assert (same + same).G is None


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_variance_of_the_dense_outputs(far: float) -> None:
    """Also of outputs far from zero, piece by piece, and of no row at all."""
    rng = np.random.default_rng(0)
    rows, W = rng.normal(far, 1, (2, 50, 4)), rng.normal(size=(2, 3, 4)).astype(np.float32)
    rows = rows.astype(np.float32)
    first, second = Moments.zeros(2, 4), Moments.zeros(2, 4)
    for part in (rows[:, :10], rows[:, 10:10], rows[:, 10:20]):
        first.add_outputs("w", part, W)
    second.add_outputs("w", rows[:, 20:], W)
    wanted = (rows.astype(np.float64) @ W.swapaxes(1, 2)).var(1)
    found = (first + second).outputs["w"]
    assert found.n == 50
    np.testing.assert_allclose(found.variance(), wanted, rtol=1e-3)


def test_outputs_of_one_part_only_are_forgotten() -> None:
    """Half of the rows say nothing about the variance of all."""
    rows, W = np.ones((1, 3, 2), np.float32), np.ones((1, 1, 2), np.float32)
    with_, without = Moments.zeros(1, 2), Moments.zeros(1, 2)
    with_.add_outputs("w", rows, W)
    assert not (with_ + without).outputs and not (without + with_).outputs
    assert (with_ + with_).outputs.keys() == {"w"}


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("where", ["H", "G", "R"])
def test_what_is_not_finite_is_seen(value: float, where: str) -> None:
    good, bad = np.ones((1, 3, 2), np.float32), np.ones((1, 3, 2), np.float32)
    bad[0, 1, 1] = value
    moments = Moments.zeros(1, 2)
    moments.add(bad if where == "G" else good, bad if where == "H" else good.copy())
    moments.add_residual("w", bad if where == "R" else good, good)
    assert moments.not_finite() == ("w" if where == "R" else "")
    moments = Moments.zeros(1, 2)
    moments.add(good, good.copy())
    moments.add_residual("w", good, good)
    assert moments.not_finite() is None


def test_other_layers_have_no_residual() -> None:
    moments = Moments.zeros(1, 2)
    moments.add_residual("w", np.ones((1, 3, 2), np.float32), np.ones((1, 3, 2), np.float32))
    assert moments.centred("v", True)[2] is None
    assert moments.centred("w", True)[2] is not None


def test_nothing_seen() -> None:
    H, G, R = Moments.zeros(2, 3).centred("w", True)
    assert not H.any() and not G.any() and R is None


def test_centring_does_not_change_the_sums() -> None:
    rows = np.ones((1, 3, 2), np.float32)
    moments = Moments.zeros(1, 2)
    moments.add(rows, rows)
    moments.add_residual("w", rows, rows)
    moments.centred("w", True)
    np.testing.assert_array_equal(moments.H, np.full((1, 2, 2), 3.0))
    np.testing.assert_array_equal(moments.R["w"], np.full((1, 2, 2), 3.0))


@pytest.mark.parametrize("offset", [10.0, 1000.0, 1e5])
def test_far_from_zero(offset: float) -> None:
    """Inputs like pixels of 0..255, not normalised: what varies must survive the large mean."""
    rows = np.random.default_rng(0).normal(offset, 1.0, (1, 4096, 8)).astype(np.float32)
    moments = Moments.zeros(1, 8)
    for start in range(0, 4096, 256):
        part = rows[:, start : start + 256]
        moments.add(part, part * np.float32(1))
        moments.add_residual("w", part[:, :, :2], part)
    H, G, R = moments.centred("w", True)
    assert R is not None
    wanted = np.cov(rows[0].T.astype(np.float64), bias=True)
    for found in (H[0], G[0]):
        np.testing.assert_allclose(found, wanted, atol=0.05)
    np.testing.assert_allclose(R[0], wanted[:2], atol=0.05)


@pytest.mark.parametrize("value", [0.0, 1e-20, 3.7, 1e5])
def test_what_never_varies_leaves_a_positive_definite_hessian(value: float) -> None:
    rows = np.full((2, 999, 3), value, np.float32)
    moments = Moments.zeros(2, 3)
    moments.add(rows, rows)
    H, G, _ = moments.centred("w", True)
    assert (np.linalg.eigvalsh(H) >= 0).all()
    np.testing.assert_array_equal(H, G)
    assert np.abs(H).max() <= 1e-11 * value**2


def sums(rows: NDArray[np.float32], counts: Sequence[int]) -> Moments:
    """Moments of rows (n, features) of samples with ``counts`` rows each, given in two calls."""
    moments = Moments.zeros(1, rows.shape[1])
    half = len(counts) // 2
    for part, number in zip(
        np.split(rows, [sum(counts[:half])]), (counts[:half], counts[half:]), strict=True
    ):
        moments.add(part[None], part[None], number)
    return moments


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class TestUncertainty:
    """The share of noise in a covariance."""

    @pytest.mark.parametrize(("features", "rows"), [(60, 40), (60, 240), (20, 2000)])
    def test_it_is_the_distance_from_the_truth(self, features: int, rows: int) -> None:
        spread = np.linspace(0.2, 3.0, features, dtype=np.float32)
        found, wanted = [], []
        for seed in range(20):
            x = normal(seed, rows, features) * spread + 5
            S = np.cov(x, rowvar=False)
            found.append(sums(x, [1] * rows).uncertainty())
            wanted.append(((S - np.diag(spread**2)) ** 2).sum() / (S**2).sum())
        assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.2)

    def test_rows_that_repeat_each_other_are_no_new_ones(self) -> None:
        """Places of one image look alike: samples count, not rows."""
        x = normal(0, 64, 30)
        once, often = sums(x, [1] * 64), sums(np.repeat(x, 50, axis=0), [50] * 64)
        assert once.uncertainty() > 0.2
        assert often.uncertainty() == pytest.approx(once.uncertainty(), rel=0.05)

    def test_samples_may_differ_in_size_and_come_in_any_order(self) -> None:
        spread = np.linspace(1, 3, 12, dtype=np.float32)
        counts = [1, 2, 3, 5, 8] * 12
        x = normal(1, sum(counts), 12) * spread
        order = np.argsort(counts)
        parts = np.split(x, np.cumsum(counts)[:-1])
        ordered = np.concatenate([parts[i] for i in order])
        found = sums(x, counts).uncertainty()
        assert found == pytest.approx(sums(x, [1] * len(x)).uncertainty(), rel=0.4)
        assert sums(ordered, [counts[i] for i in order]).uncertainty() == pytest.approx(found, rel=0.1)

    def test_nothing_is_known_of_one_sample(self) -> None:
        moments = Moments.zeros(1, 30)
        x = normal(2, 5, 30)[None]
        moments.add(x, x, [5])
        assert moments.uncertainty() == 0.0
        moments.add(x, x)
        assert moments.uncertainty() == Moments.zeros(1, 3).uncertainty() == 0.0
        assert sums(np.zeros((8, 3), np.float32), [2] * 4).uncertainty() == 0.0

    def test_shards_add(self) -> None:
        x = normal(3, 80, 30)
        joined = sums(x[:40], [1] * 40) + sums(x[40:], [1] * 40)
        assert joined.uncertainty() == pytest.approx(sums(x, [1] * 80).uncertainty(), rel=0.1)

    def test_groups_are_measured_apart(self) -> None:
        x = np.stack([normal(4, 40, 9), np.repeat(normal(5, 1, 9), 40, 0) + 1e-3 * normal(6, 40, 9)])
        moments = Moments.zeros(2, 9)
        moments.add(x, x, [1] * 40)
        alone = [sums(part, [1] * 40).uncertainty() for part in x]
        assert moments.uncertainty() == pytest.approx(float(np.median(alone)), rel=0.1)


class TestWeights:
    """A row with weight 3 counts as three rows."""

    @given(
        seed=st.integers(0, 1000),
        repeats=st.lists(st.integers(0, 4), min_size=2, max_size=12).filter(any),
        far=st.sampled_from([0.0, 300.0]),
        moved=st.booleans(),
    )
    def test_as_often_as_they_say(self, seed: int, repeats: list[int], far: float, moved: bool) -> None:
        rng = np.random.default_rng(seed)
        pruned = rng.normal(far, 1, (2, len(repeats), 3)).astype(np.float32)
        dense = (pruned + rng.normal(size=pruned.shape)).astype(np.float32) if moved else pruned
        r, W = rng.normal(size=(2, 2, len(repeats), 4)).astype(np.float32)[0], np.ones((2, 4, 3), np.float32)
        weights, again = np.array(repeats, np.float32), np.repeat(np.arange(len(repeats)), repeats)
        found, wanted = Moments.zeros(2, 3), Moments.zeros(2, 3)
        found.add(dense, pruned, weights=weights)
        found.add_residual("w", r, pruned, weights)
        found.add_outputs("w", dense, W, weights)
        repeated = pruned[:, again]
        wanted.add(dense[:, again] if moved else repeated, repeated)
        wanted.add_residual("w", r[:, again], repeated)
        wanted.add_outputs("w", dense[:, again], W)
        assert found.n == wanted.n == sum(repeats)
        scale = {"rtol": 1e-5, "atol": 1e-4 * (1 + far)}
        np.testing.assert_allclose(found.H, wanted.H, **scale)
        np.testing.assert_allclose(found.sum_d, wanted.sum_d, rtol=1e-6, atol=1e-5)
        for centre in (False, True):
            for one, other in zip(found.centred("w", centre), wanted.centred("w", centre), strict=True):
                assert one is not None and other is not None
                np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(
            found.outputs["w"].variance(), wanted.outputs["w"].variance(), rtol=1e-3, atol=1e-2
        )

    def test_small_weights_are_not_taken_for_few_rows(self) -> None:
        rows = np.random.default_rng(0).normal(2, 1, (1, 40, 3)).astype(np.float32)
        small, plain = Moments.zeros(1, 3), Moments.zeros(1, 3)
        small.add(rows, rows, [20, 20], np.full(40, 0.001, np.float32))
        plain.add(rows, rows, [20, 20])
        assert small.n == pytest.approx(0.04)
        np.testing.assert_allclose(small.centred("w", True)[0], plain.centred("w", True)[0], rtol=1e-4)
        assert small.uncertainty() == pytest.approx(plain.uncertainty(), rel=1e-4)

    def test_shards_add(self) -> None:
        rng = np.random.default_rng(1)
        rows, weights = rng.normal(size=(1, 30, 3)).astype(np.float32), rng.random(30).astype(np.float32)
        whole, parts = Moments.zeros(1, 3), [Moments.zeros(1, 3), Moments.zeros(1, 3)]
        whole.add(rows, rows, weights=weights)
        for part, cut in zip(parts, (slice(0, 11), slice(11, 30)), strict=True):
            part.add(rows[:, cut], rows[:, cut], weights=weights[cut])
        merged = parts[0] + parts[1]
        assert merged.n == pytest.approx(whole.n)
        np.testing.assert_allclose(merged.H, whole.H, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(merged.sum_p, whole.sum_p, rtol=1e-5, atol=1e-5)
