"""What both second-order solvers promise: exact masks, exact zeros, less error than magnitude."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.solvers import admm, sweep
from onnxprune.solvers.linalg import damped
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.refit import refit
from tests.unit.solvers.problems import error, layer

Solve = Callable[..., tuple[np.ndarray, np.ndarray]]
SOLVERS = [pytest.param(admm.solve, id="admm"), pytest.param(sweep.solve, id="sweep")]
PATTERNS = ["unstructured", "2:4", "1:3", "block:4x1", "block:2x3", "block:1x8"]


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("shape", [(1, 12, 24), (3, 5, 7), (1, 1, 30), (4, 8, 9)])
def test_masks_and_zeros(solve: Solve, text: str, shape: tuple[int, int, int]) -> None:
    W, H = layer(*shape)
    before = W.copy(), H.copy()
    pattern = Pattern.parse(text)
    zeros = pattern.zeros(shape, 0.6)
    pruned, mask = solve(W, H, pattern, zeros, damping=0.01)
    assert pruned.dtype == np.float32 and pruned.shape == mask.shape == shape
    assert (pruned[~mask] == 0).all()
    assert pattern.holds(mask)
    if pattern.kind != "block":
        assert int((~mask).sum()) == zeros
    else:
        share = 0.5 if solve is admm.solve else 1.0  # the sweep chooses twice where blocks are cut off
        assert abs(int((~mask).sum()) - zeros) <= pattern.rows * pattern.columns * share
    assert np.isfinite(pruned).all()
    np.testing.assert_array_equal(W, before[0])
    np.testing.assert_array_equal(H, before[1])


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:4x1"])
@pytest.mark.parametrize("seed", range(3))
def test_better_than_magnitude_with_refit(solve: Solve, text: str, seed: int) -> None:
    W, H = layer(1, 24, 40, seed)
    pattern = Pattern.parse(text)
    zeros = pattern.zeros(W.shape, 0.5)
    mask = pattern.keep(np.abs(W), zeros)
    Hd = damped(H, 0.01).astype(np.float32)
    magnitude = refit(W, mask, Hd, W @ Hd)
    pruned, found = solve(W, H, pattern, zeros, damping=0.01)
    assert int((~found).sum()) == int((~mask).sum())
    assert error(W, pruned, H) < 0.8 * error(W, magnitude, H)


@pytest.mark.parametrize("solve", SOLVERS)
def test_more_zeros_cost_more(solve: Solve) -> None:
    W, H = layer(1, 16, 32)
    counts = [Pattern().zeros(W.shape, s) for s in (0.1, 0.3, 0.5, 0.7, 0.9)]
    errors = [error(W, solve(W, H, Pattern(), zeros, damping=0.01)[0], H) for zeros in counts]
    assert errors == sorted(errors)
    assert errors[0] < 1e-3 < 0.05 < errors[-1] < 1.0


@pytest.mark.parametrize("solve", SOLVERS)
def test_groups_are_independent_when_counts_are_local(solve: Solve) -> None:
    """N:M counts within rows, so solving groups together or one by one is the same."""
    W, H = layer(3, 8, 16)
    pattern = Pattern.parse("2:4")
    pruned, mask = solve(W, H, pattern, pattern.zeros(W.shape, 0.5), damping=0.01)
    for group in range(3):
        part = slice(group, group + 1)
        alone, alone_mask = solve(W[part], H[part], pattern, 8 * 8, damping=0.01)
        np.testing.assert_array_equal(mask[part], alone_mask)
        np.testing.assert_allclose(pruned[part], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solve", SOLVERS)
def test_zeros_go_to_the_group_that_matters_least(solve: Solve) -> None:
    W, H = layer(2, 8, 16)
    H[1] *= 1e-6
    _, mask = solve(W, H, Pattern(), W[0].size, damping=0.01)
    assert mask[0].mean() > 0.9 > 0.1 > mask[1].mean()


@pytest.mark.parametrize("solve", SOLVERS)
def test_independent_inputs_need_no_second_order(solve: Solve) -> None:
    """With H = diag(s^2) the best mask is the largest |w| s, and nothing can be repaired."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(1, 32, 40)).astype(np.float32)
    s = np.exp(rng.normal(size=40))
    H = np.diag(s**2)[None]
    pruned, mask = solve(W, H, Pattern(), 700, damping=1e-6)
    best = error(W, np.where(Pattern().keep((W * s) ** 2, 700), W, 0), H)
    assert best <= error(W, pruned, H) * 1.0001 <= 1.05 * best  # ADMM stops early
    np.testing.assert_allclose(pruned, np.where(mask, W, 0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_copied_input_takes_over(solve: Solve) -> None:
    """Inputs 0 and 1 are equal: one of them can carry both weights without any error."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(400, 6))
    X[:, 1] = X[:, 0]
    W = np.array([[[0.4, 0.5, 3, 3, 3, 3]]], np.float32)
    pruned, mask = solve(W, (X.T @ X / 400)[None], Pattern(), 1, damping=1e-4)
    assert int((~mask[0, 0, :2]).sum()) == 1
    np.testing.assert_allclose(pruned.sum(), W.sum(), rtol=1e-2)


@pytest.mark.parametrize("solve", SOLVERS)
def test_dead_inputs_are_pruned_first(solve: Solve) -> None:
    W, H = layer(1, 8, 20)
    dead = [3, 4, 11]
    H[:, dead] = 0
    H[:, :, dead] = 0
    pruned, mask = solve(W, H, Pattern(), 24, damping=1e-7)
    assert mask[:, :, dead].mean() < 0.15  # a live weight may be as small
    assert error(W, pruned, H) < 1e-6


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("groups", [1, 2])
def test_nothing_ever_fires(solve: Solve, groups: int) -> None:
    """A group without any signal falls back to magnitude."""
    W = np.random.default_rng(0).normal(size=(groups, 6, 8)).astype(np.float32)
    pruned, mask = solve(W, np.zeros((groups, 8, 8)), Pattern(), 20 * groups, damping=0.01)
    np.testing.assert_allclose(pruned, np.where(mask, W, 0), rtol=1e-4, atol=1e-5)
    best = np.where(Pattern().keep(np.abs(W), 20 * groups), 0, W)
    assert ((W - pruned) ** 2).sum() <= 1.05 * (best**2).sum()


@pytest.mark.parametrize("solve", SOLVERS)
def test_fewer_samples_than_inputs(solve: Solve) -> None:
    X = np.random.default_rng(0).normal(size=(1, 5, 40))
    W, _ = layer(1, 8, 40)
    H = X.swapaxes(1, 2) @ X / 5
    pruned, mask = solve(W, H, Pattern(), 240, damping=0.01)
    assert np.isfinite(pruned).all() and int(mask.sum()) == 80
    assert error(W, pruned, H) < 0.5


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("zeros", [1, 239, 240])
def test_extreme_counts(solve: Solve, zeros: int) -> None:
    W, H = layer(1, 10, 24)
    pruned, mask = solve(W, H, Pattern(), zeros, damping=0.01)
    assert int((~mask).sum()) == zeros == int((pruned == 0).sum())


@pytest.mark.parametrize("solve", SOLVERS)
def test_twice_the_same(solve: Solve) -> None:
    W, H = layer(2, 12, 24)
    first, second = (solve(W, H, Pattern(), 300, damping=0.01) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_units_do_not_matter(solve: Solve, scale: float) -> None:
    W, H = layer(1, 12, 24)
    pruned, mask = solve(W, H, Pattern(), 200, damping=0.01)
    other, other_mask = solve(W, H * scale, Pattern(), 200, damping=0.01)
    assert (mask == other_mask).mean() > 0.99
    assert error(W, other, H) == pytest.approx(error(W, pruned, H), rel=0.02)
