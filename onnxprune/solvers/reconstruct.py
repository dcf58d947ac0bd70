"""From statistics to the weight that reproduces the dense output from pruned inputs, and its bias."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.stats import Moments
from onnxprune.solvers.linalg import inverse_hessian

Floats = NDArray[np.float32]


def target_weight(
    W: Floats, H: NDArray[np.float64], G: NDArray[np.float64], R: NDArray[np.float64] | None, damping: float
) -> tuple[Floats, float]:
    """Return ``W* = (W (G + l I) + R) (H + l I)^-1`` and the damping used.

    W* is the ridge solution, pulled towards W, of ``min sum ||W x_d + r - W* x_p||^2``.

    Args:
        W: (groups, out_features, in_features) dense weight.
        H: (groups, in, in) moments of the pruned inputs.
        G: (groups, in, in) cross moments, dense by pruned.
        R: (groups, out, in) cross moments of the residual difference, or None.
        damping: l as a share of the mean diagonal of H.
    """
    inverse, used = inverse_hessian(H, damping)
    ridge = used * np.einsum("gii->gi", H).mean(1)[:, None, None]
    ridge = np.where(ridge > 0, ridge, 1.0)
    wide = W.astype(np.float64)
    right = wide @ G + ridge * wide
    if R is not None:
        right += R
    return (right @ inverse).astype(np.float32), used


def bias_shift(moments: Moments, name: str, dense: Floats, pruned: Floats) -> NDArray[np.float64]:
    """Return what to add to the bias so that the mean output is the dense one: (groups, out_features)."""
    n = max(moments.n, 1)
    shift = dense.astype(np.float64) @ (moments.sum_d / n)[:, :, None]
    shift -= pruned.astype(np.float64) @ (moments.sum_p / n)[:, :, None]
    flat: NDArray[np.float64] = shift[:, :, 0]
    if name in moments.sum_r:
        flat = flat + moments.sum_r[name] / n
    return flat
