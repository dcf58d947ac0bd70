from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import ModelError
from onnxprune.solvers.linalg import damped, inverse_hessian, spd_inverse


def moments(groups: int, n: int, rows: int | None = None, seed: int = 0) -> np.ndarray:
    X = np.random.default_rng(seed).normal(size=(groups, rows or 4 * n, n))
    return X.swapaxes(1, 2) @ X / X.shape[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_inverse(dtype: type, groups: int, n: int) -> None:
    A = moments(groups, n).astype(dtype)
    before = A.copy()
    inverse = spd_inverse(A)
    assert inverse.dtype == dtype
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(inverse @ A, np.broadcast_to(np.eye(n), A.shape), atol=tolerance)
    np.testing.assert_allclose(inverse, np.linalg.inv(A), rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(A, before)


def test_inverse_is_symmetric() -> None:
    inverse = spd_inverse(moments(1, 20).astype(np.float32))
    np.testing.assert_array_equal(inverse, inverse.swapaxes(1, 2))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("broken", [-1.0, np.nan])
def test_inverse_refuses_what_is_not_positive_definite(groups: int, dtype: type, broken: float) -> None:
    A = np.stack([np.eye(4)] * groups).astype(dtype)
    A[-1, 2, 2] = broken
    with pytest.raises(np.linalg.LinAlgError):
        spd_inverse(A)


def test_damped_adds_a_share_of_the_mean_diagonal() -> None:
    H = moments(2, 5)
    before = H.copy()
    added = damped(H, 0.1) - H
    np.testing.assert_array_equal(H, before)
    for group in range(2):
        np.testing.assert_allclose(added[group], 0.1 * np.diag(H[group]).mean() * np.eye(5), atol=1e-12)


def test_damped_of_dead_inputs() -> None:
    H = np.zeros((3, 2, 2))
    H[1, 0, 0] = 4.0  # one input never fires
    H[2] = [[2, 1], [1, 2]]
    found = damped(H, 0.5)
    np.testing.assert_allclose(found[0], np.eye(2))  # nothing fires: any ridge will do
    np.testing.assert_allclose(found[1], [[5, 0], [0, 1]])
    np.testing.assert_allclose(found[2], [[3, 1], [1, 3]])


def test_first_damping_is_enough_for_a_singular_hessian() -> None:
    H = moments(1, 30, rows=5)  # rank 5
    inverse, used = inverse_hessian(H, 0.01)
    assert used == 0.01
    np.testing.assert_allclose(inverse @ damped(H, 0.01), np.eye(30)[None], atol=1e-8)


def test_damping_is_raised_until_it_works() -> None:
    H = np.diag([1.0, 1.0, 1.0, -0.05])[None]  # as rounding leaves after the means were taken out
    inverse, used = inverse_hessian(H, 0.01)
    assert used == pytest.approx(0.1)
    np.testing.assert_allclose(inverse @ damped(H, used), np.eye(4)[None], atol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_no_numbers(value: float) -> None:
    H = np.eye(3)[None].copy()
    H[0, 1, 1] = value
    with pytest.raises(ModelError, match="cannot be inverted: they hold NaN or infinite"):
        inverse_hessian(H, 0.01)
