"""Outliers protect a layer, within the range of the paper."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.allocation.rules import owl
from onnxprune.allocation.rules.facts import Facts

FACTS = {
    "none": Facts(100, (1, 10, 10), outliers=0.0),
    "some": Facts(300, (1, 10, 30), outliers=0.02),
    "many": Facts(100, (1, 10, 10), outliers=0.04),
}


def test_more_outliers_less_sparsity_twice_the_range_at_most() -> None:
    found = owl.shares(FACTS, 0.5)
    assert found[0] > found[1] > found[2]
    assert found[0] - found[2] == pytest.approx(2 * owl.RANGE)
    assert (found * [100, 300, 100]).sum() == pytest.approx(0.5 * 500)  # the mean is by weights


def test_without_outliers_it_is_uniform() -> None:
    assert owl.shares({name: Facts(5, (1, 1, 5)) for name in "ab"}, 0.4).tolist() == [0.4, 0.4]


def test_from_nothing_to_everything() -> None:
    assert (owl.shares(FACTS, 0.0) <= 0).all() and (owl.shares(FACTS, 1.0) >= 1).all()
    assert (np.diff([owl.shares(FACTS, s) for s in np.linspace(0, 1, 30)], axis=0) >= 0).all()
