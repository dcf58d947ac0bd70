"""Prune one weight matrix: choose the mask and the values that stay, by the recipe's criterion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.recipe.mixture import Mixture
from onnxprune.scoring import mixed
from onnxprune.scoring.attention import sample_attention
from onnxprune.scoring.evidence import Evidence, Slopes
from onnxprune.solvers import admm, sweep
from onnxprune.solvers.choose import among, choose, luck
from onnxprune.solvers.linalg import damped
from onnxprune.solvers.patterns import Mask, Pattern
from onnxprune.solvers.refit import refit

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Method:
    """The part of a recipe that a single layer needs.

    Attributes:
        criterion: what :meth:`onnxprune.recipe.mixture.Mixture.parse` reads.
        solver: of ``obs``: ``admm`` or ``sweep``.
        pattern: of the zeros.
        damping: ridge as a share of the mean diagonal of the Hessian.
        refit: repair what a criterion other than obs keeps, by least squares on its mask.
        quick: fewer ADMM iterations, for an estimate.
        alpha: of the criterion ``adaptive``.
        seed: keep weights by chance, in proportion to their scores; None: the highest scores.
        inattentive: weights of output features with less than this share of the mean sample attention go
            before all others; None: no difference is made.
        heads: weights whose rows are the model's answers: they never go as a whole.
        slopes: weight name -> its gradients, where the criterion needs them.
    """

    criterion: str = "obs"
    solver: str = "admm"
    pattern: Pattern = field(default_factory=Pattern)
    damping: float = 0.01
    refit: bool = True
    quick: bool = False
    alpha: float = 1.0
    seed: int | None = None
    inattentive: float | None = None
    heads: frozenset[str] = frozenset()
    slopes: Mapping[str, Slopes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def mixture(self) -> Mixture:
        """The criterion, taken apart."""
        return Mixture.parse(self.criterion)


def prune_matrix(
    W: Floats,
    H: NDArray[np.float64],
    zeros: int,
    method: Method,
    prepared: admm.Prepared | None = None,
    evidence: Evidence | None = None,
) -> tuple[Floats, Mask]:
    """Return the pruned matrix and its mask (True = keep).

    Args:
        W: (groups, out_features, in_features) the weights to approximate.
        H: (groups, in_features, in_features) second moments of the inputs.
        zeros: weights to set to zero.
        method: how.
        prepared: what ADMM can share between matrices with the same H.
        evidence: what criteria other than obs look at; None: W and H.
    """
    if zeros <= 0:
        return W, np.ones(W.shape, dtype=bool)
    evidence, mixture = evidence or Evidence(W, H, alpha=method.alpha), method.mixture
    if mixture.solves:
        return _solve(W, H, zeros, method, prepared, mixed.emphasis(mixture, evidence))
    score = mixed.saliency(mixture, evidence)
    if method.inattentive is not None:
        score = among(score, sample_attention(evidence)[:, :, None] < method.inattentive)
    mask = choose(score, zeros, method.pattern, per_row=mixed.per_row(mixture), seed=method.seed)
    if not method.refit:
        return np.where(mask, W, np.float32(0)), mask
    Hd = damped(H, method.damping).astype(np.float32)
    return refit(W, mask, Hd, W @ Hd), mask


def _solve(
    W: Floats,
    H: NDArray[np.float64],
    zeros: int,
    method: Method,
    prepared: admm.Prepared | None,
    emphasis: Floats | None,
) -> tuple[Floats, Mask]:
    """Let the OBS solver choose and repair; ``emphasis`` as in :func:`onnxprune.solvers.admm.solve`."""
    if method.pattern.free:
        energy = W * W * np.einsum("gii->gi", H)[:, None, :]
        energy = energy if emphasis is None else energy * emphasis
        order = method.pattern.row_order(energy, zeros)[:, :, None]
        adjacent = replace(method, pattern=method.pattern.adjacent)
        factors = None if emphasis is None else np.take_along_axis(emphasis, order, 1)
        found = _solve(np.take_along_axis(W, order, 1), H, zeros, adjacent, prepared, factors)
        back = np.argsort(order, axis=1)
        return np.take_along_axis(found[0], back, 1), np.take_along_axis(found[1], back, 1)
    if method.seed is not None:
        factors = luck(W.shape, method.pattern, method.seed).astype(np.float32)
        emphasis = factors if emphasis is None else emphasis * factors
    if method.solver == "sweep":
        return sweep.solve(W, H, method.pattern, zeros, damping=method.damping, emphasis=emphasis)
    return admm.solve(
        W,
        prepared or H,
        method.pattern,
        zeros,
        damping=method.damping,
        quick=method.quick,
        emphasis=emphasis,
    )
