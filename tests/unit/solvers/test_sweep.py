"""The column sweep alone; what it shares with ADMM is in test_solvers.py."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.solvers import sweep
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


@pytest.mark.parametrize("block", [8, 20, 40])
def test_sweep_chooses_n_of_m_late(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Each group is chosen after all updates from its left, so the size of a block changes nothing."""
    W, H = layer(1, 6, 42)
    pattern = Pattern.parse("2:4")
    pruned, mask = sweep.solve(W, H, pattern, 1, damping=0.01)
    monkeypatch.setattr(sweep, "BLOCK", block)
    other, other_mask = sweep.solve(W, H, pattern, 1, damping=0.01)
    np.testing.assert_array_equal(mask, other_mask)
    np.testing.assert_allclose(pruned, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["unstructured", "block:4x1", "block:2x3"])
def test_sweep_over_several_blocks_of_columns(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    W, H = layer(1, 16, 42)
    pattern = Pattern.parse(text)
    zeros = pattern.zeros(W.shape, 0.5)
    monkeypatch.setattr(sweep, "BLOCK", 8)
    pruned, mask = sweep.solve(W, H, pattern, zeros, damping=0.01)
    assert abs(int((~mask).sum()) - zeros) <= pattern.rows * pattern.columns - 1
    plain = np.where(pattern.keep(W * W * np.einsum("gii->gi", H)[:, None], zeros), W, 0)
    assert error(W, pruned, H) < 0.75 * error(W, plain, H)


def test_zero_zeros_change_nothing_in_the_sweep() -> None:
    W, H = layer(1, 6, 12)
    for text in ("unstructured", "2:4", "block:2x2"):
        pruned, mask = sweep.solve(W, H, Pattern.parse(text), 0, damping=0.01)
        assert mask.all()
        np.testing.assert_array_equal(pruned, W)
