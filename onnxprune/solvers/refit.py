"""Least squares on a fixed support, all rows at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.solvers.patterns import Mask

Floats = NDArray[np.float32]


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
    W = np.where(mask, start, np.float32(0))
    scale = 1.0 / np.maximum(np.einsum("gii->gi", H)[:, None, :], np.float32(1e-30))
    residual = np.where(mask, B - W @ H, np.float32(0))
    direction = residual * scale
    energy = (residual * direction).sum(-1, keepdims=True)
    for _ in range(steps):
        product = np.where(mask, direction @ H, np.float32(0))
        length = energy / np.maximum((direction * product).sum(-1, keepdims=True), np.float32(1e-30))
        W += length * direction
        residual -= length * product
        preconditioned = residual * scale
        fresh = (residual * preconditioned).sum(-1, keepdims=True)
        direction = preconditioned + fresh / np.maximum(energy, np.float32(1e-30)) * direction
        energy = fresh
    return W
