"""Least squares on a fixed support, all rows at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.solvers.patterns import Mask

Floats = NDArray[np.float32]
_TINY = np.float32(1e-30)


def refit(start: Floats, mask: Mask, H: Floats, B: Floats, steps: int = 12) -> Floats:
    """Return the W with zeros outside ``mask`` that minimises ``tr(W H W^T) - 2 tr(W B^T)``.

    Conjugate gradients preconditioned by the diagonal, run for all rows together: the cost is one
    matrix product a step, where an exact solve needs one Cholesky factorisation a row.

    Args:
        start: (groups, rows, n) first guess.
        mask: (groups, rows, n), True = free.
        H: (groups, n, n) positive definite.
        B: (groups, rows, n) right-hand side.
        steps: iterations at most.
    """
    W = start * mask
    scale = 1.0 / np.maximum(np.einsum("gii->gi", H)[:, None, :], _TINY)
    residual = B - W @ H
    residual *= mask
    direction = residual * scale
    energy = _dots(residual, direction)
    product = np.empty_like(W)  # in place: fresh memory costs as much as the arithmetic
    for _ in range(steps):
        np.matmul(direction, H, out=product)
        product *= mask
        length = energy / np.maximum(_dots(direction, product), _TINY)
        product *= length
        residual -= product
        np.multiply(direction, length, out=product)
        W += product
        np.multiply(residual, scale, out=product)
        fresh = _dots(residual, product)
        direction *= fresh / np.maximum(energy, _TINY)
        direction += product
        energy = fresh
    return W


def _dots(a: Floats, b: Floats) -> Floats:
    """Return the inner product of each row: (groups, rows, 1)."""
    products: Floats = np.einsum("gri,gri->gr", a, b)[:, :, None]
    return products
