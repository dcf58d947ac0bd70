"""Targets and biases on problems whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.stats import Moments
from onnxprune.errors import ModelError
from onnxprune.solvers.linalg import damped
from onnxprune.solvers.reconstruct import (
    MAX_SCALE,
    bias_shift,
    restore_variance,
    target_weight,
    target_within,
)

RNG = np.random.default_rng(0)


def rows(groups: int, count: int, n: int) -> np.ndarray:
    return RNG.normal(1.0, 1.0, (groups, count, n)).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 3])
def test_recovers_the_weight_that_undoes_a_change_of_the_inputs(groups: int) -> None:
    """x_p = A x_d, so W* = W A^-1 reproduces the dense outputs exactly."""
    dense = rows(groups, 500, 6)
    A = np.eye(6) + 0.2 * RNG.normal(size=(groups, 6, 6))
    moments = Moments.zeros(groups, 6)
    moments.add(dense, (dense @ A.swapaxes(1, 2)).astype(np.float32))
    W = RNG.normal(size=(groups, 4, 6)).astype(np.float32)
    H, G, R = moments.centred("w", False)
    found, used = target_weight(W, H, G, R, 1e-9)
    assert used == 1e-9 and found.dtype == np.float32
    np.testing.assert_allclose(found, W @ np.linalg.inv(A), rtol=1e-3, atol=1e-3)


def test_recovers_the_weight_that_makes_up_for_the_residual() -> None:
    """r = V x_p must come out of the layer too: W* = W + V."""
    x = rows(1, 500, 6)
    W, V = (RNG.normal(size=(1, 4, 6)).astype(np.float32) for _ in range(2))
    moments = Moments.zeros(1, 6)
    moments.add(x, x)
    moments.add_residual("w", x @ V.swapaxes(1, 2), x)
    for centre in (False, True):
        found, _ = target_weight(W, *moments.centred("w", centre), 1e-9)
        np.testing.assert_allclose(found, W + V, rtol=1e-3, atol=1e-3)
    other, _ = target_weight(W, *moments.centred("another layer", False), 1e-9)
    np.testing.assert_allclose(other, W, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damping", [1e-4, 0.01, 1.0])
def test_equal_streams_give_the_dense_weight(damping: float) -> None:
    x = rows(2, 300, 8)
    moments = Moments.zeros(2, 8)
    moments.add(x, x)
    W = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    found, _ = target_weight(W, *moments.centred("w", True), damping)
    np.testing.assert_allclose(found, W, rtol=1e-5, atol=1e-6)


def test_is_the_ridge_solution_pulled_towards_the_dense_weight() -> None:
    dense, pruned = rows(1, 50, 5), rows(1, 50, 5)
    moments = Moments.zeros(1, 5)
    moments.add(dense, pruned)
    W = RNG.normal(size=(1, 3, 5)).astype(np.float32)
    H, G, _ = moments.centred("w", False)
    found, _ = target_weight(W, H, G, None, 0.1)
    ridge = 0.1 * np.diag(H[0]).mean()

    def cost(V: np.ndarray) -> float:
        fit = ((dense[0] @ W[0].T - pruned[0] @ V.T) ** 2).sum() / 50
        return float(fit + ridge * ((V - W[0]) ** 2).sum())

    best = cost(found[0].astype(np.float64))
    for _ in range(20):
        assert cost(found[0] + 0.01 * RNG.normal(size=(3, 5))) > best


def test_dead_inputs_keep_their_weight() -> None:
    x = rows(1, 100, 6)
    x[:, :, 2] = 0
    moments = Moments.zeros(1, 6)
    moments.add(x, x)
    W = RNG.normal(size=(1, 3, 6)).astype(np.float32)
    found, _ = target_weight(W, *moments.centred("w", False), 0.01)
    np.testing.assert_allclose(found, W, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 10])
def test_no_signal_at_all(n: int) -> None:
    moments = Moments.zeros(1, 4)
    moments.add(np.zeros((1, n, 4), np.float32), np.zeros((1, n, 4), np.float32))
    W = RNG.normal(size=(1, 3, 4)).astype(np.float32)
    found, _ = target_weight(W, *moments.centred("w", True), 0.01)
    np.testing.assert_allclose(found, W, rtol=1e-6)


def test_raised_damping_is_used_on_both_sides() -> None:
    H = np.diag([1.0, 1.0, 1.0, -0.05])[None]
    W = RNG.normal(size=(1, 2, 4)).astype(np.float32)
    found, used = target_weight(W, H, H, None, 0.01)
    assert used == pytest.approx(0.1)
    np.testing.assert_allclose(found, W, rtol=1e-4)  # (H + l)(H + l)^-1 with the same l
    assert damped(H, used)[0, 3, 3] > 0


def test_nan_statistics() -> None:
    H = np.full((1, 3, 3), np.nan)
    with pytest.raises(ModelError, match="NaN or infinite"):
        target_weight(np.ones((1, 2, 3), np.float32), H, H, None, 0.01)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_bias_makes_the_mean_output_equal(groups: int, residual: bool) -> None:
    dense, pruned = rows(groups, 40, 5), rows(groups, 40, 5)
    W, new = (RNG.normal(size=(groups, 3, 5)).astype(np.float32) for _ in range(2))
    moments = Moments.zeros(groups, 5)
    moments.add(dense[:, :10], pruned[:, :10])
    moments.add(dense[:, 10:], pruned[:, 10:])
    r = rows(groups, 40, 3)
    if residual:
        moments.add_residual("w", r, pruned)
    shift = bias_shift(moments, "w", W, new)
    assert shift.shape == (groups, 3)
    wanted = (dense @ W.swapaxes(1, 2) + (r if residual else 0)).mean(1)
    found = (pruned @ new.swapaxes(1, 2)).mean(1) + shift
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_bias_of_nothing_seen() -> None:
    W = np.ones((1, 2, 3), np.float32)
    np.testing.assert_array_equal(bias_shift(Moments.zeros(1, 3), "w", W, W), [[0, 0]])


def test_lost_variance_comes_back() -> None:
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(1, 5000, 6)).astype(np.float32)
    pruned = dense * np.linspace(0.6, 1.1, 6, dtype=np.float32)
    moments = Moments.zeros(1, 6)
    moments.add(dense, pruned)
    W = rng.normal(size=(1, 4, 6)).astype(np.float32)
    moments.add_outputs("w", dense, W)
    small = W * np.array([0.9, 0.7, 0.2, 1.5], np.float32)[:, None]
    H, _, _ = moments.centred("w", True)
    found = restore_variance(small, moments.outputs["w"].variance(), H)
    wanted, before, after = (
        (x @ w.swapaxes(1, 2)).var(1)[0] for x, w in ((dense, W), (pruned, small), (pruned, found))
    )
    np.testing.assert_allclose(after[:2], wanted[:2], rtol=1e-3)
    np.testing.assert_allclose(after[2], before[2] * MAX_SCALE**2, rtol=1e-3)  # too far gone
    np.testing.assert_allclose(after[3], before[3], rtol=1e-3)  # never made smaller
    assert found.dtype == np.float32


def test_a_row_without_any_weight_stays_so() -> None:
    W = np.ones((1, 2, 3), np.float32)
    pruned = W * np.array([0, 0.8], np.float32)[:, None]
    found = restore_variance(pruned, np.full((1, 2), 3.0), np.eye(3)[None])
    np.testing.assert_allclose(found, np.array([[[0] * 3, [1] * 3]]), rtol=1e-6)
    np.testing.assert_array_equal(restore_variance(W * 0, np.zeros((1, 2)), np.zeros((1, 3, 3))), W * 0)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_within_columns_is_least_squares_on_them(groups: int, moved: bool, residual: bool) -> None:
    dense = rows(groups, 400, 6)
    pruned = dense + 0.3 * rows(groups, 400, 6) if moved else dense
    W, r = RNG.normal(size=(groups, 3, 6)).astype(np.float32), rows(groups, 400, 3)
    H, G = pruned.swapaxes(1, 2) @ pruned / 400, dense.swapaxes(1, 2) @ pruned / 400
    R = (r.swapaxes(1, 2) @ pruned / 400).astype(np.float64) if residual else None
    H, G = H.astype(np.float64), G.astype(np.float64)
    kept = np.ones((groups, 6), bool)
    kept[:, [1, 4]] = False
    _, found, _ = target_within(W, H, G if moved else H, R, 1e-8, 1e-8, kept)
    for g in range(groups):
        wanted = dense[g] @ W[g].T + (r[g] if residual else 0)
        best = np.linalg.lstsq(pruned[g][:, kept[g]], wanted, rcond=None)[0].T
        np.testing.assert_allclose(found[g][:, kept[g]], best, atol=2e-3)
        assert not found[g][:, ~kept[g]].any()


def test_what_is_removed_is_made_up_for_whatever_the_caution() -> None:
    dense = rows(1, 400, 6)
    pruned = dense + 0.3 * rows(1, 400, 6)
    W = RNG.normal(size=(1, 3, 6)).astype(np.float32)
    H = (pruned.swapaxes(1, 2) @ pruned / 400).astype(np.float64)
    G = (dense.swapaxes(1, 2) @ pruned / 400).astype(np.float64)
    kept = np.ones((1, 6), bool)
    kept[:, [1, 4]] = False
    _, alone, _ = target_within(W, H, H, None, 1e-8, 1e-8, kept)
    _, careful, _ = target_within(W, H, G, None, 1e-8, 1e9, kept)
    _, bold, _ = target_within(W, H, G, None, 1e-8, 1e-8, kept)
    np.testing.assert_allclose(careful, alone, atol=1e-4)
    assert not np.allclose(bold, alone, atol=1e-2)
