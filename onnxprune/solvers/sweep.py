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
    W: Floats,
    H: NDArray[np.floating],
    pattern: Pattern,
    zeros: int,
    *,
    damping: float,
    emphasis: Floats | None = None,
) -> tuple[Floats, Mask]:
    """Return the pruned weights and their mask; arguments as :func:`onnxprune.solvers.admm.solve`."""
    inverse, _ = inverse_hessian(H, damping)
    diagonal = np.einsum("gii->gi", inverse)[:, None, :]
    U = np.asarray(np.linalg.cholesky(inverse).swapaxes(1, 2), dtype=np.float64)  # upper: inverse = U^T U
    wide: NDArray[np.float64] = W.astype(np.float64)
    factor = np.ones(W.shape, np.float32) if emphasis is None else emphasis
    plan = pattern.keep(wide**2 / diagonal * factor, zeros)
    width = BLOCK
    if pattern.columns > 1:
        width = max(pattern.columns, BLOCK // pattern.columns * pattern.columns)
    columns = wide.shape[-1]
    mask = plan.copy()
    late = pattern if pattern.kind == "nm" and not plan.all() else None
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        corner = U[:, start:stop, start:stop]
        saliency = wide[:, :, start:stop] ** 2 / np.einsum("gii->gi", corner)[:, None, :] ** 2
        saliency *= factor[:, :, start:stop]
        # Blocks at the edges are smaller, so what an earlier block of columns had too much goes off the next.
        count = int((~plan[:, :, :stop]).sum()) - int((~mask[:, :, :start]).sum())
        mask[:, :, start:stop] = pattern.keep(saliency, count)
        at = np.s_[:, :, start:stop]
        error = _sweep_block(wide[at], mask[at], factor[at], corner, late)
        wide[:, :, stop:] -= error @ U[:, start:stop, stop:]
    return wide.astype(np.float32), mask


def _sweep_block(
    W: NDArray[np.float64], mask: Mask, factor: Floats, U: NDArray[np.float64], late: Pattern | None
) -> NDArray[np.float64]:
    """Prune the columns of ``W`` in place, left to right; return the error that later columns absorb.

    With N:M (``late``) each group of columns is chosen when the sweep reaches it, as in the paper.
    """
    errors = np.zeros(W.shape)
    for column in range(W.shape[-1]):
        if late and column % late.columns == 0:
            group = slice(column, column + late.columns)
            inverse = np.einsum("gii->gi", U[:, group, group])[:, None, :]
            mask[:, :, group] = late.keep(W[:, :, group] ** 2 / inverse**2 * factor[:, :, group], 1)
        kept = np.where(mask[:, :, column], W[:, :, column], 0.0)
        error = (W[:, :, column] - kept) / U[:, column, column, None]
        W[:, :, column] = kept
        W[:, :, column + 1 :] -= error[:, :, None] * U[:, None, column, column + 1 :]
        errors[:, :, column] = error
    return errors
