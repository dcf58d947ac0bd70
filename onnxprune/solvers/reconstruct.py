"""From statistics to the weight that reproduces the dense output from pruned inputs, and its bias."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.stats import Moments
from onnxprune.parallel import multiply
from onnxprune.solvers.linalg import solve_damped

Floats = NDArray[np.float32]
MAX_SCALE = 2.0


def target_weight(
    W: Floats, H: NDArray[np.float64], G: NDArray[np.float64], R: NDArray[np.float64] | None, damping: float
) -> tuple[Floats, float]:
    """Return ``W* = (W (G + l I) + R) (H + l I)^-1`` and the damping used.

    W* is the ridge solution, pulled towards W, of ``min sum ||W x_d + r - W* x_p||^2``.

    Args:
        W: (groups, out_features, in_features) dense weight.
        H: (groups, in, in) moments of the pruned inputs.
        G: (groups, in, in) cross moments, dense by pruned; H itself where the inputs are equal.
        R: (groups, out, in) cross moments of the residual difference, or None.
        damping: l as a share of the mean diagonal of H.
    """
    # As W + (W (G - H) + R) (H + l I)^-1: what differs is small, so float32 is enough for the product.
    missing = _missing(W, H, G, R)
    change, used = solve_damped(H, damping, np.zeros(W.shape) if missing is None else missing)
    return (W + change).astype(np.float32), used


def _missing(
    W: Floats, H: NDArray[np.float64], G: NDArray[np.float64], R: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Return ``W (G - H) + R``; None where both streams are equal."""
    if G is H:
        return R
    moved = multiply(W, (G - H).astype(np.float32)).astype(np.float64)
    return moved if R is None else moved + R


def target_within(
    W: Floats,
    H: NDArray[np.float64],
    G: NDArray[np.float64],
    R: NDArray[np.float64] | None,
    damping: float,
    careful: float,
    kept: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], Floats, float]:
    """Return H and W* as :func:`target_weight` has it, with columns of W* only where ``kept`` is True.

    What is removed is regressed onto what stays. Source: He, Zhang & Sun, "Channel Pruning for Accelerating
    Very Deep Neural Networks" (2017), in closed form.

    Args:
        W: (groups, out_features, in_features) dense weight.
        H: (groups, in, in) moments of the pruned inputs.
        G: (groups, in, in) cross moments, dense by pruned; H itself where the inputs are equal.
        R: (groups, out, in) cross moments of the residual difference, or None.
        damping: l for what is removed, as a share of the mean diagonal of what is kept of H.
        careful: the same for what else the dense outputs differ by.
        kept: (groups, in).

    Returns:
        H without what is gone (its mean diagonal in that place), W*, and the damping used.
    """
    K = kept[:, None, :]
    start = np.where(K, W, np.float32(0))
    removed = multiply(W - start, H.astype(np.float32)).astype(np.float64)
    within = np.where(K & kept[:, :, None], H, 0.0)
    diagonal = np.einsum("gii->gi", within)
    mean = diagonal.sum(1, keepdims=True) / np.maximum(kept.sum(1, keepdims=True), 1)
    diagonal += np.where(kept, 0.0, mean)
    change, used = solve_damped(within, damping, np.where(K, removed, 0.0))
    other = _missing(W, H, G, R)
    if other is not None:
        change = change + solve_damped(within, careful, np.where(K, other, 0.0))[0]
    return within, (start + change).astype(np.float32), used


def restore_variance(pruned: Floats, wanted: NDArray[np.float64], H: NDArray[np.float64]) -> Floats:
    """Scale each output row of ``pruned`` so that the output varies as much as the dense model's.

    Args:
        pruned: (groups, out_features, in_features) the weight to scale.
        wanted: (groups, out_features) variance of the dense model's outputs.
        H: (groups, in, in) covariance of the pruned inputs.
    """
    found = np.einsum("goi,goi->go", pruned @ H, pruned)
    tiny = 1e-12 * max(float(wanted.max(initial=0.0)), 1e-30)
    scale = np.sqrt(np.maximum(wanted, 0.0) / np.maximum(found, tiny))
    # Only what was lost is put back, and a row that is nearly gone is not blown up to noise.
    return np.asarray(pruned * np.clip(scale, 1.0, MAX_SCALE)[:, :, None], dtype=np.float32)


def bias_shift(moments: Moments, name: str, dense: Floats, pruned: Floats) -> NDArray[np.float64]:
    """Return what to add to the bias so that the mean output is the dense one: (groups, out_features)."""
    n = moments.n or 1
    shift = dense.astype(np.float64) @ (moments.sum_d / n)[:, :, None]
    shift -= pruned.astype(np.float64) @ (moments.sum_p / n)[:, :, None]
    flat: NDArray[np.float64] = shift[:, :, 0]
    if name in moments.sum_r:
        flat = flat + moments.sum_r[name] / n
    return flat
