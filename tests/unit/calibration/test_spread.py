"""Noise of summed scatter matrices, against all of them written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.calibration.spread import Spread


def samples(seed: int, counts: list[int], features: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((1, count, features)) * rng.uniform(0.5, 2)).astype(np.float32)
        for count in counts
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(1, 6), min_size=8, max_size=20))
def test_probes_tell_what_the_matrices_would(seed: int, counts: list[int]) -> None:
    parts = samples(seed, counts, 6)
    spread = Spread(np.concatenate(parts, 1))
    spread.probes = np.random.default_rng(seed).standard_normal((6, 4000)).astype(np.float32)
    spread.total, spread.squares = np.zeros((1, 6, 4000)), np.zeros((1, 4000))
    half = len(parts) // 2
    for some, numbers in ((parts[:half], counts[:half]), (parts[half:], counts[half:])):
        spread.add(np.concatenate(some, 1), numbers)
    centred = [part[0] - spread.centre[0] for part in parts]
    scatter = [y.T @ y for y in centred]
    n, whole = sum(counts), sum(scatter)
    share = sum(count**2 for count in counts) / n**2
    wanted = sum((A**2).sum() for A in scatter) - share * (whole**2).sum()
    assert spread.noise()[0] == pytest.approx(
        max(wanted / (1 - share), 0), rel=0.25, abs=0.02 * float((whole**2).sum())
    )


def test_equal_and_unequal_samples_are_added_alike() -> None:
    (rows,) = samples(0, [12], 5)
    equal, unequal = Spread(rows), Spread(rows)
    equal.add(rows, [3, 3, 3, 3])
    unequal.add(rows[:, :3], [3])
    unequal.add(rows[:, 3:], [3, 3, 3])
    again = Spread(rows)
    again.add(rows, [3, 3, 2, 4])
    np.testing.assert_allclose(equal.total, unequal.total, rtol=1e-5)
    np.testing.assert_allclose(equal.squares, unequal.squares, rtol=1e-5)
    np.testing.assert_allclose(equal.total, again.total, rtol=1e-4)
    assert not np.allclose(equal.squares, again.squares, rtol=1e-3)


def test_rows_without_a_sample_are_a_mistake() -> None:
    (rows,) = samples(0, [4], 5)
    with pytest.raises(ValueError, match="samples of 3 rows in all, there are 4"):
        Spread(rows).add(rows, [1, 2])


def test_one_sample_has_no_noise() -> None:
    (rows,) = samples(0, [4], 5)
    spread = Spread(rows)
    assert spread.noise().tolist() == [0.0]
    spread.add(rows, [4])
    assert spread.noise().tolist() == [0.0]


def test_shards_around_one_centre_merge_exactly() -> None:
    rows = np.concatenate(samples(3, [4] * 6, 5), 1)
    whole = Spread(rows)
    parts = [whole.empty() for _ in range(3)]
    whole.add(rows, [4] * 6)
    for k, part in enumerate(parts):
        part.add(rows[:, 8 * k : 8 * k + 8], [4, 4])
    merged = parts[0] + parts[1] + parts[2]
    np.testing.assert_allclose(merged.noise(), whole.noise(), rtol=1e-12)
    assert merged.rows == whole.rows and merged.squared_rows == whole.squared_rows
    with pytest.raises(ValueError, match="different centres"):
        _ = whole + Spread(rows + 1)
