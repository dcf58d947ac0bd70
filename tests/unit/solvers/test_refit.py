from __future__ import annotations

import numpy as np
import pytest

from onnxprune.solvers.refit import refit


def problem(groups: int, rows: int, n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Correlated inputs X, dense W, a mask with about half of the weights, and H, B in float32."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(groups, 6 * n, n)) @ (np.eye(n) + 0.3 * rng.normal(size=(groups, n, n)))
    W = rng.normal(size=(groups, rows, n)).astype(np.float32)
    mask = rng.random(W.shape) < 0.5
    H = (X.swapaxes(1, 2) @ X / X.shape[1]).astype(np.float32)
    return X, W, mask, H, W @ H


def loss(W: np.ndarray, H: np.ndarray, B: np.ndarray) -> float:
    W = W.astype(np.float64)
    return float(((W @ H) * W).sum() - 2 * (W * B).sum())


@pytest.mark.parametrize("groups", [1, 3])
def test_equals_least_squares_on_the_support(groups: int) -> None:
    X, W, mask, H, B = problem(groups, 5, 10)
    found = refit(W, mask, H, B)
    for group in range(groups):
        for row in range(5):
            free = mask[group, row]
            wanted = np.linalg.lstsq(X[group][:, free], X[group] @ W[group, row], rcond=None)[0]
            np.testing.assert_allclose(found[group, row, free], wanted, rtol=2e-3, atol=2e-4)


def test_outside_the_mask_is_exactly_zero() -> None:
    _, W, mask, H, B = problem(2, 8, 40)
    found = refit(W, mask, H, B)
    assert (found[~mask] == 0).all() and found[mask].all()
    assert found.dtype == np.float32


def test_never_worse_than_the_start() -> None:
    _, W, mask, H, B = problem(1, 20, 60)
    losses = [loss(refit(W, mask, H, B, steps=steps), H, B) for steps in (0, 1, 2, 4, 12)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(loss(np.where(mask, W, 0), H, B))
    assert losses[-1] < losses[0]


def test_full_mask_returns_the_dense_weight() -> None:
    _, W, mask, H, B = problem(1, 6, 10)
    np.testing.assert_allclose(refit(W * 0, mask | True, H, B), W, rtol=2e-3, atol=2e-3)


def test_more_steps_than_needed_do_no_harm() -> None:
    """A row that is solved has no direction left: nothing is divided by nothing."""
    _, W, mask, H, B = problem(1, 6, 10)
    mask[0, 0] = False
    mask[0, 1] = False
    mask[0, 1, 3] = True
    short, long = refit(W, mask, H, B), refit(W, mask, H, B, steps=200)
    assert np.isfinite(long).all() and not long[0, 0].any()
    np.testing.assert_allclose(short, long, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_of_the_inputs_do_not_matter(scale: float) -> None:
    _, W, mask, H, B = problem(1, 6, 10)
    wanted = refit(W, mask, H, B)
    scaled = np.float32(scale)
    np.testing.assert_allclose(refit(W, mask, H * scaled, B * scaled), wanted, rtol=1e-2, atol=1e-3)


def test_inputs_are_not_changed() -> None:
    _, W, mask, H, B = problem(1, 6, 10)
    copies = [a.copy() for a in (W, mask, H, B)]
    refit(W, mask, H, B)
    for array, copy in zip((W, mask, H, B), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
