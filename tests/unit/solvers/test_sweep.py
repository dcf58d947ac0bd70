"""The column sweep alone; what it shares with ADMM is in test_solvers.py."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.solvers import sweep
from onnxprune.solvers.patterns import Pattern
from tests.unit.solvers.problems import error, layer


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
