from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from onnxprune.solvers import lapack


def positive(n: int, dtype: str) -> np.ndarray:
    x = np.random.default_rng(n).normal(size=(n, 2 * n)).astype(dtype)
    A: np.ndarray = x @ x.T / n
    return A


@pytest.mark.parametrize("n", [1, 2, 7, 64, 131])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factor_invert_and_solve(n: int, dtype: str) -> None:
    A, exact = positive(n, dtype), 1e-4 if dtype == "float32" else 1e-11
    above = np.triu(A, 1)
    L = A.copy()
    assert lapack.factor(L) == 0
    np.testing.assert_array_equal(np.triu(L, 1), above)
    np.testing.assert_allclose(np.tril(L) @ np.tril(L).T, A, atol=exact)
    X = np.random.default_rng(0).normal(size=(3, n)).astype(dtype)
    solved = X.copy()
    assert lapack.solve(L, solved) == 0
    np.testing.assert_allclose(solved @ A, X, atol=exact)
    assert lapack.invert(L) == 0
    inverse = np.tril(L) + np.tril(L, -1).T
    np.testing.assert_allclose(inverse @ A, np.eye(n), atol=exact)


def test_some_rows_of_a_larger_array() -> None:
    A, X = positive(9, "float64"), np.ones((6, 9))
    lapack.factor(A)
    lapack.solve(A, X[2:4])
    assert (X[:2] == 1).all() and (X[4:] == 1).all() and not (X[2:4] == 1).any()


def test_says_which_minor_is_not_positive() -> None:
    A = np.eye(5)
    A[3, 3] = -1
    assert lapack.factor(A) == 4
    A = np.eye(5)
    A[1, 1] = 0
    assert lapack.invert(A) == 2


@pytest.mark.parametrize("wrong", [np.eye(4)[:, ::2], np.eye(4, dtype=np.float32)])
def test_arrays_it_would_read_wrongly(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="potrs wants C-contiguous"):
        lapack.solve(np.eye(4), wrong)


def test_other_threads_run_meanwhile() -> None:
    A, ticks, done = positive(1200, "float64"), [0.0], threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    before = time.perf_counter()
    for _ in range(3):
        lapack.factor(A.copy())
    after = time.perf_counter()
    done.set()
    thread.join()
    assert sum(before < t < after for t in ticks) > 3  # with the lock held: between two calls, at most
