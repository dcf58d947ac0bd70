"""Laws of every criterion; what each one is made for is in its own file."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import recipe
from onnxprune.scoring import CRITERIA, Criterion

EVERY = pytest.mark.parametrize("criterion", [pytest.param(c, id=name) for name, c in CRITERIA.items()])


def layer() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2, 50, 6))
    return rng.normal(size=(2, 4, 6)).astype(np.float32), X.swapaxes(1, 2) @ X / 50


def test_every_criterion_of_the_recipe_exists() -> None:
    assert set(recipe.CRITERIA) == {"obs", *CRITERIA}


@EVERY
def test_shape_and_sign(criterion: Criterion) -> None:
    W, H = layer()
    before = W.copy(), H.copy()
    score = criterion.saliency(W, H)
    assert score.shape == W.shape
    assert np.isfinite(score).all() and (score >= 0).all()
    np.testing.assert_array_equal(criterion.saliency(-W, H), score)
    np.testing.assert_array_equal(W, before[0])
    np.testing.assert_array_equal(H, before[1])


@EVERY
def test_a_zero_weight_matters_least(criterion: Criterion) -> None:
    W, H = layer()
    W[0, 1, 2] = 0
    assert criterion.saliency(W, H)[0, 1, 2] == 0


@EVERY
def test_nothing_fires(criterion: Criterion) -> None:
    W, H = layer()
    assert np.isfinite(criterion.saliency(W, H * 0)).all()
