"""Small linear-algebra helpers over batches of symmetric matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.parallel import map_threads, split
from onnxprune.solvers import lapack

MAX_DAMPING_STEPS = 8  # each step multiplies the damping by ten: from 1 % of the mean diagonal to 10^6 times


def damped(H: NDArray[np.floating], damping: float) -> NDArray[np.float64]:
    """Return ``H + damping * mean(diag(H)) * I`` for each group; a group without any signal gets I.

    Args:
        H: (groups, n, n), symmetric, positive semi-definite.
        damping: share of the mean diagonal.
    """
    wide: NDArray[np.float64] = np.array(H, dtype=np.float64)
    diagonal = np.einsum("gii->gi", wide)  # a view: writing to it changes H
    mean = diagonal.mean(axis=1, keepdims=True)
    # Dead inputs (a ReLU that never fires) leave zero columns: the ridge alone decides there.
    diagonal += np.where(mean > 0, damping * mean, 1.0)
    return wide


def spd_inverse(A: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the inverse of each symmetric positive definite matrix of ``A`` (groups, n, n), in its dtype.

    Raises:
        np.linalg.LinAlgError: when a matrix is not positive definite or holds NaN or infinity.
    """
    if not np.isfinite(A).all():  # LAPACK may pass NaN on without a word
        raise np.linalg.LinAlgError("matrix holds NaN or infinite values")
    if A.shape[0] > 1:
        np.linalg.cholesky(A)  # raises for a matrix that is not positive definite; inv does not
        return np.asarray(np.linalg.inv(A))
    found = np.array(A[0], order="C")
    info = lapack.factor(found) or lapack.invert(found)
    if info != 0:
        raise np.linalg.LinAlgError(f"matrix is not positive definite (LAPACK info {info})")
    _mirror(found)
    return found[None]


def _mirror(A: NDArray[np.floating], block: int = 256) -> None:
    """Copy the lower triangle of a matrix to the upper one, block by block so that both stay in cache."""
    n = len(A)
    for i in range(0, n, block):
        for j in range(0, i, block):
            A[j : j + block, i : i + block] = A[i : i + block, j : j + block].T
        corner = A[i : i + block, i : i + block]
        lower = np.tril(corner, -1)
        corner[...] = lower + lower.T + np.diag(corner.diagonal())


def solve_damped(
    H: NDArray[np.floating], damping: float, right: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return ``X`` with ``X (H + damping I) = right`` and the damping that made it possible.

    Args:
        H: (groups, n, n).
        damping: as in :func:`inverse_hessian`.
        right: (groups, rows, n).

    Raises:
        ModelError: as :func:`inverse_hessian`.
    """
    if H.shape[0] > 1:  # many small matrices
        inverse, used = inverse_hessian(H, damping)
        return right @ inverse, used
    (factor, used) = _first(lambda used: _cholesky(damped(H, used)[0]), damping)
    wanted = np.array(right[0], order="C")
    map_threads(lambda rows: lapack.solve(factor, wanted[rows]), split(wanted.shape[0]))
    return wanted[None], used


def _cholesky(A: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace the lower triangle of ``A`` (n, n) by its Cholesky factor; return ``A``."""
    info = lapack.factor(A)
    if info != 0 or not np.isfinite(A.diagonal()).all():
        raise np.linalg.LinAlgError(f"matrix is not positive definite (LAPACK info {info})")
    return A


def inverse_hessian(H: NDArray[np.floating], damping: float) -> tuple[NDArray[np.float64], float]:
    """Return the inverse of the damped Hessian and the damping that made it possible.

    Args:
        H: (groups, n, n).
        damping: first damping to try; raised tenfold while Cholesky fails.

    Raises:
        ModelError: when no damping helps (the statistics hold NaN or infinity).
    """
    inverse, used = _first(lambda used: spd_inverse(damped(H, used)), damping)
    return np.asarray(inverse, dtype=np.float64), used


def _first(attempt: Callable[[float], NDArray[Any]], damping: float) -> tuple[NDArray[Any], float]:
    """Return what the smallest damping that works gives, and that damping."""
    for step in range(MAX_DAMPING_STEPS):
        used = damping * 10**step
        try:
            found = attempt(used)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(found).all():
            return found, used
    raise ModelError("the activation statistics cannot be inverted: they hold NaN or infinite values")
