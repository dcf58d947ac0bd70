"""Prune one weight matrix: choose the mask and the values that stay, by the recipe's criterion."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.scoring import CRITERIA
from onnxprune.solvers import admm, sweep
from onnxprune.solvers.linalg import damped
from onnxprune.solvers.patterns import Mask, Pattern, lowest
from onnxprune.solvers.refit import refit

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Method:
    """The part of a recipe that a single layer needs.

    Attributes:
        criterion: ``obs`` or a key of :data:`onnxprune.scoring.CRITERIA`.
        solver: of ``obs``: ``admm`` or ``sweep``.
        pattern: of the zeros.
        damping: ridge as a share of the mean diagonal of the Hessian.
        refit: repair what a criterion other than obs keeps, by least squares on its mask.
        quick: fewer ADMM iterations, for an estimate.
    """

    criterion: str = "obs"
    solver: str = "admm"
    pattern: Pattern = field(default_factory=Pattern)
    damping: float = 0.01
    refit: bool = True
    quick: bool = False


def prune_matrix(
    W: Floats,
    H: NDArray[np.float64],
    zeros: int,
    method: Method,
    prepared: admm.Prepared | None = None,
) -> tuple[Floats, Mask]:
    """Return the pruned matrix and its mask (True = keep).

    Args:
        W: (groups, out_features, in_features) the weights to approximate.
        H: (groups, in_features, in_features) second moments of the inputs.
        zeros: weights to set to zero.
        method: how.
        prepared: what ADMM can share between matrices with the same H.
    """
    if zeros <= 0:
        return W, np.ones(W.shape, dtype=bool)
    if method.criterion == "obs" and method.pattern.free:
        order = method.pattern.row_order(W * W * np.einsum("gii->gi", H)[:, None, :], zeros)[:, :, None]
        adjacent = replace(method, pattern=method.pattern.adjacent)
        found = prune_matrix(np.take_along_axis(W, order, 1), H, zeros, adjacent, prepared)
        back = np.argsort(order, axis=1)
        return np.take_along_axis(found[0], back, 1), np.take_along_axis(found[1], back, 1)
    if method.criterion == "obs":
        if method.solver == "sweep":
            return sweep.solve(W, H, method.pattern, zeros, damping=method.damping)
        return admm.solve(
            W,
            prepared or H,
            method.pattern,
            zeros,
            damping=method.damping,
            quick=method.quick,
        )
    criterion = CRITERIA[method.criterion]
    score = criterion.saliency(W, H)
    if criterion.per_row and method.pattern.kind == "unstructured":
        mask = _keep_per_row(score, zeros)
    else:
        mask = method.pattern.keep(score, zeros)
    if not method.refit:
        return np.where(mask, W, np.float32(0)), mask
    Hd = damped(H, method.damping).astype(np.float32)
    return refit(W, mask, Hd, W @ Hd), mask


def _keep_per_row(score: NDArray[np.floating], zeros: int) -> Mask:
    """Drop the same number in every output row; what does not divide goes to the lowest scores left."""
    groups, rows, columns = score.shape
    each = zeros // (groups * rows)
    order = np.argsort(score, axis=-1, kind="stable")
    mask = np.ones(score.shape, dtype=bool)
    np.put_along_axis(mask, order[..., :each], False, axis=-1)
    left = zeros - each * groups * rows
    if left and each < columns:
        following = np.take_along_axis(score, order[..., each : each + 1], axis=-1)
        extra = lowest(following, left)
        at = np.argwhere(extra[..., 0])
        mask[at[:, 0], at[:, 1], order[at[:, 0], at[:, 1], each]] = False
    return mask
