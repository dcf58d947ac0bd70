"""Sums that grow with the data; what is pruned from them: test_pruner.py."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.stats import Moments
from onnxprune.errors import DataError, ModelError
from onnxprune.model import Model
from onnxprune.online.growing import GrowingSums
from onnxprune.opening import find_prunable
from onnxprune.recipe import Recipe
from tests.unit.online.examples import IDS, X


def growing(model: Model) -> GrowingSums:
    recipe = Recipe(min_size=32, threads=1)
    return GrowingSums(model, find_prunable(model, recipe)[0], recipe)


def test_sums_are_those_of_all_rows(dense: Model) -> None:
    sums = growing(dense)
    assert sums.feed(X) == 64 == sums.samples
    moments = sums.total()[0]
    assert isinstance(moments, Moments)
    exact = X.astype(np.float64)
    assert moments.n == 64 and moments.G is None
    np.testing.assert_allclose(moments.H[0], exact.T @ exact, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(moments.sum_p[0], exact.sum(0), rtol=1e-5, atol=1e-4)


def test_rows_of_a_table_are_counted(table: Model) -> None:
    sums = growing(table)
    sums.feed([IDS[:7], IDS[7:21], IDS[21:]])
    place = next(i for i, stage in enumerate(sums.stages) if stage.layers[0].kind == "embedding")
    np.testing.assert_array_equal(sums.total()[place], np.bincount(IDS.ravel(), minlength=30))


def test_samples_of_other_shapes_wait_on_their_own(table: Model) -> None:
    once, pieces = growing(table), growing(table)
    long = np.random.default_rng(6).integers(0, 30, (20, 7))
    once.feed([IDS, long])
    for a, b in zip(np.split(IDS, 10), np.split(long, 10), strict=True):
        pieces.feed([a, b])
    first, second = once.total(), pieces.total()
    for x, y in zip(first, second, strict=True):
        if isinstance(x, Moments) and isinstance(y, Moments):
            assert x.n == y.n == 50 * 4 + 20 * 7
            np.testing.assert_allclose(x.H, y.H, rtol=1e-5, atol=1e-4)  # full batches come in another order
        else:
            np.testing.assert_array_equal(x, y)


def test_looking_at_samples_that_wait_changes_nothing(dense: Model) -> None:
    sums = growing(dense)
    sums.feed(X[:5])
    for _ in range(2):
        moments = sums.total()[0]
        assert isinstance(moments, Moments) and moments.n == 5
    sums.feed(X[5:])
    moments = sums.total()[0]
    assert isinstance(moments, Moments) and moments.n == 64


def test_a_batch_that_overflows_spoils_nothing(dense: Model) -> None:
    sums = growing(dense)
    sums.feed(X)
    before = [item.H.copy() for item in sums.total() if isinstance(item, Moments)]
    with np.errstate(over="ignore"), pytest.raises(ModelError, match="NaN, infinite or too large"):
        sums.feed(X * np.float32(1e30))
    assert sums.samples == 64
    after = [item.H for item in sums.total() if isinstance(item, Moments)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_goes_on(dense: Model) -> None:
    first, second = growing(dense), growing(dense)
    first.feed(X[:37])
    second.load_state_dict(first.state_dict())
    for sums in (first, second):
        sums.feed(X[37:])
    for a, b in zip(first.total(), second.total(), strict=True):
        assert isinstance(a, Moments) and isinstance(b, Moments)
        np.testing.assert_array_equal(a.H, b.H)


def test_nothing_fed(dense: Model) -> None:
    with pytest.raises(DataError, match="nothing was fed"):
        growing(dense).total()
