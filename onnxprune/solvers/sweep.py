"""The optimal-brain-surgeon column sweep of SparseGPT.

Source: Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot"
(2023). Two changes: the number of zeros of each block of columns follows the saliencies of the whole
layer instead of being equal, and counts are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.solvers.linalg import inverse_hessian
from onnxprune.solvers.patterns import Mask, Pattern

Floats = NDArray[np.float32]
BLOCK = 128  # columns whose updates are applied together


def solve(
    W: Floats, H: NDArray[np.floating], pattern: Pattern, zeros: int, *, damping: float
) -> tuple[Floats, Mask]:
    """Return the pruned weights and their mask; arguments as :func:`onnxprune.solvers.admm.solve`."""
    inverse, _ = inverse_hessian(H, damping)
    diagonal = np.einsum("gii->gi", inverse)[:, None, :]
    U = np.linalg.cholesky(inverse).swapaxes(1, 2)  # upper: inverse = U^T U
    W = W.astype(np.float64)
    plan = pattern.keep(W**2 / diagonal, zeros)
    width = BLOCK
    if pattern.columns > 1:
        width = max(pattern.columns, BLOCK // pattern.columns * pattern.columns)
    columns = W.shape[-1]
    mask = plan.copy()
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        corner = U[:, start:stop, start:stop]
        saliency = W[:, :, start:stop] ** 2 / np.einsum("gii->gi", corner)[:, None, :] ** 2
        mask[:, :, start:stop] = pattern.keep(saliency, int((~plan[:, :, start:stop]).sum()))
        error = _sweep_block(W[:, :, start:stop], mask[:, :, start:stop], corner)
        W[:, :, stop:] -= error @ U[:, start:stop, stop:]
    return W.astype(np.float32), mask


def _sweep_block(W: NDArray[np.float64], mask: Mask, U: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prune the columns of ``W`` in place, left to right; return the error that later columns absorb."""
    errors = np.zeros(W.shape)
    for column in range(W.shape[-1]):
        kept = np.where(mask[:, :, column], W[:, :, column], 0.0)
        error = (W[:, :, column] - kept) / U[:, column, column, None]
        W[:, :, column] = kept
        W[:, :, column + 1 :] -= error[:, :, None] * U[:, None, column, column + 1 :]
        errors[:, :, column] = error
    return errors
