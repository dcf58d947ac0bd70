"""ADMM alone; what it shares with the sweep is in test_solvers.py."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.solvers import admm, sweep
from onnxprune.solvers.patterns import Pattern


def layer(
    groups: int, rows: int, n: int, seed: int = 0, rank: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and moments of inputs that are strongly correlated and of different sizes."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(groups, 8 * n, rank or n // 2))
    X = hidden @ rng.normal(size=(groups, hidden.shape[2], n)) + 0.3 * rng.normal(size=(groups, 8 * n, n))
    X *= np.exp(rng.normal(size=n))
    W = rng.normal(size=(groups, rows, n)).astype(np.float32)
    return W, X.swapaxes(1, 2) @ X / X.shape[1]


def error(W: np.ndarray, pruned: np.ndarray, H: np.ndarray) -> float:
    D = (W - pruned).astype(np.float64)
    return float(((D @ H) * D).sum() / ((W @ H) * W).sum())


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
