"""Laws of every criterion; what each one is made for is in its own file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxprune.recipe import mixture
from onnxprune.scoring import CRITERIA, Criterion
from onnxprune.scoring.evidence import Evidence, Slopes

EVERY = pytest.mark.parametrize("criterion", [pytest.param(c, id=name) for name, c in CRITERIA.items()])
SIGNED = ("attention",)  # the mean of an output tells its sign
NOT_OF_THE_WEIGHT = ("gradient",)


def named(*without: str) -> pytest.MarkDecorator:
    chosen = [pytest.param(c, id=name) for name, c in CRITERIA.items() if name not in without]
    return pytest.mark.parametrize("criterion", chosen)


def layer(zero: tuple[int, int, int] | None = None) -> Evidence:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2, 50, 6))
    W = rng.normal(size=(2, 4, 6)).astype(np.float32)
    if zero:
        W[zero] = 0
    g = rng.normal(size=(10, 2, 4, 6)).astype(np.float32)
    slopes = Slopes(g.mean(0), (g**2).mean(0), np.abs(g * W).mean(0))
    return Evidence(W, X.swapaxes(1, 2) @ X / 50, X.mean(1), slopes)


def test_every_criterion_of_the_recipe_exists() -> None:
    assert set(mixture.CRITERIA) == {"obs", *CRITERIA}


def test_those_that_need_gradients_are_known() -> None:
    for name, criterion in CRITERIA.items():
        if name in mixture.GRADIENT_CRITERIA:
            with pytest.raises(mixture.UsageError):
                criterion.saliency(replace(layer(), slopes=None))
        else:
            criterion.saliency(replace(layer(), slopes=None))


@EVERY
def test_shape_and_range(criterion: Criterion) -> None:
    found = layer()
    before = found.W.copy(), found.H.copy()
    score = criterion.saliency(found)
    assert score.shape == found.W.shape
    assert np.isfinite(score).all() and (score >= 0).all()
    np.testing.assert_array_equal(criterion.saliency(found), score)
    np.testing.assert_array_equal(found.W, before[0])
    np.testing.assert_array_equal(found.H, before[1])


@named(*SIGNED)
def test_signs_do_not_matter(criterion: Criterion) -> None:
    found = layer()
    np.testing.assert_array_equal(criterion.saliency(replace(found, W=-found.W)), criterion.saliency(found))


@named(*NOT_OF_THE_WEIGHT)
def test_a_zero_weight_matters_least(criterion: Criterion) -> None:
    assert criterion.saliency(layer((0, 1, 2)))[0, 1, 2] == 0


@EVERY
def test_nothing_fires(criterion: Criterion) -> None:
    found = layer()
    assert found.mean is not None
    silent = Slopes(*(np.zeros_like(found.W) for _ in range(3)))
    dead = replace(found, H=found.H * 0, mean=found.mean * 0, slopes=silent)
    assert np.isfinite(criterion.saliency(dead)).all()


@EVERY
def test_groups_do_not_see_each_other_but_for_scale(criterion: Criterion) -> None:
    """The order inside a group is that of the group alone."""
    found = layer()
    assert found.slopes is not None and found.mean is not None
    first = Slopes(found.slopes.first[:1], found.slopes.second[:1], found.slopes.taylor[:1])
    alone = criterion.saliency(Evidence(found.W[:1], found.H[:1], found.mean[:1], first, alpha=1e-9))
    both = criterion.saliency(replace(found, alpha=1e-9))
    np.testing.assert_array_equal(
        np.argsort(both[0], axis=None, kind="stable"), np.argsort(alone[0], axis=None, kind="stable")
    )
