"""ADMM alone; what it shares with the sweep is in test_solvers.py."""

from __future__ import annotations

import pytest

from onnxprune.solvers import admm, sweep
from onnxprune.solvers.patterns import Pattern
from tests.unit.solvers.problems import error, layer


@pytest.mark.parametrize("seed", range(3))
def test_admm_is_better_than_the_sweep(seed: int) -> None:
    W, H = layer(1, 24, 40, seed)
    zeros = Pattern().zeros(W.shape, 0.7)
    errors = [error(W, s(W, H, Pattern(), zeros, damping=0.01)[0], H) for s in (admm.solve, sweep.solve)]
    assert errors[0] < errors[1]


def test_admm_with_a_sampled_threshold_is_exact_in_the_end() -> None:
    """Layers above SAMPLE weights estimate the threshold while the support moves."""
    W, H = layer(1, 2100, 32)
    assert W.size > admm.SAMPLE
    zeros = Pattern().zeros(W.shape, 0.7)
    pruned, mask = admm.solve(W, H, Pattern(), zeros, damping=0.01)
    assert int((~mask).sum()) == zeros
    part, _ = admm.solve(W[:, :256], H, Pattern(), Pattern().zeros((1, 256, 32), 0.7), damping=0.01)
    assert error(W, pruned, H) == pytest.approx(error(W[:, :256], part, H), rel=0.2)
