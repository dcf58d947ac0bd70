"""One threshold for all layers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.allocation.budget import GRID
from onnxprune.allocation.rules import RULES, counts, global_threshold
from onnxprune.allocation.rules.facts import Facts


def facts(scores: np.ndarray) -> Facts:
    return Facts(scores.size, (1, 1, scores.size), quantiles=np.quantile(scores, GRID))


def test_equals_ranking_all_weights_together() -> None:
    rng = np.random.default_rng(0)
    scores = {
        "a": rng.exponential(1.0, 4000),
        "b": rng.exponential(0.2, 2000),
        "c": rng.exponential(5.0, 500),
    }
    zeros = 4000
    found = counts(RULES["global"], {name: facts(s) for name, s in scores.items()}, zeros)
    limit = np.sort(np.concatenate(list(scores.values())))[zeros]
    assert sum(found.values()) == zeros
    for name, values in scores.items():  # as exact as a hundred quantiles are
        assert found[name] == pytest.approx((values < limit).sum(), abs=0.01 * values.size)


def test_layers_below_the_threshold_go_and_those_above_stay() -> None:
    low, high = np.linspace(1, 2, 1000), np.linspace(10, 20, 1000)
    found = counts(RULES["global"], {"low": facts(low), "high": facts(high)}, 900)
    assert found["low"] > 890


def test_equal_saliencies_are_shared_out_exactly() -> None:
    same = {"a": facts(np.ones(100)), "b": facts(np.ones(300))}
    assert sum(counts(RULES["global"], same, 100).values()) == 100


def test_grows_with_the_sparsity() -> None:
    table = {"a": facts(np.linspace(0.0, 1, 50)), "b": facts(np.full(20, 0.5))}
    rows = np.array([global_threshold.shares(table, s) for s in np.linspace(0, 1, 60)])
    assert (np.diff(rows, axis=0) >= 0).all() and (rows[-1] == 1).all()
