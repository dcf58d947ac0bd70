"""Layers to solve, shared by the tests of the solvers."""

from __future__ import annotations

import numpy as np


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
