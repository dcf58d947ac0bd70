"""How many weights of each layer lie below a threshold: the sparsity follows from the saliencies.

Counted on the dense model. The layers are then pruned to these counts, the lowest saliencies first: with
``--no-refit`` exactly the weights below the threshold go, else the saliencies are those of repaired weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.walk import add_tied, walk
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import Streams
from onnxprune.errors import ModelError
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.recipe.threshold import Threshold
from onnxprune.scoring import mixed
from onnxprune.scoring.attention import sample_attention
from onnxprune.scoring.evidence import Evidence
from onnxprune.sequential import layer_pattern
from onnxprune.solvers.layer import Job, dense_matrix, evidence_of, ridge
from onnxprune.solvers.linalg import inverse_hessian
from onnxprune.solvers.prune import Method


def count_below(
    dense: Model,
    layers: Sequence[Layer],
    streams: Streams,
    masks: Sequence[NDArray[np.bool_] | None],
    method: Method,
    threshold: Threshold,
    removal: float,
    *,
    seed: int,
    on_layer: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, int], dict[str, Moments]]:
    """Return the zeros of each layer, and the statistics of the later uses of tied weights.

    Args:
        dense: the model.
        layers: what may be pruned.
        streams: one stream (dense) over the calibration batches, not advanced yet.
        masks: per batch, which tokens are real.
        method: how a matrix is pruned.
        threshold: on the saliencies.
        removal: share in (0, 1] of the weights (or rows) below the threshold that go, rounded to the nearest.
        seed: of the choice of rows.
        on_layer: called after each layer.

    Raises:
        ModelError: when all weights of a layer would go.
    """
    first: dict[str, Moments] = {}
    tied: dict[str, Moments] = {}
    counts: dict[str, int] = {}
    waiting = {layer.name: len(layer.sites) for layer in layers}
    for stage, seen in walk(dense, layers, streams, masks, seed=seed):
        add_tied(tied, stage, seen)
        for layer in stage.layers:
            if isinstance(seen, Moments) and not stage.site:
                first[layer.name] = seen
            waiting[layer.name] -= 1
            if waiting[layer.name]:
                continue
            own = first.pop(layer.name, None)
            if own is not None and layer.name in tied:
                own = own + tied[layer.name]
            counts[layer.name] = _zeros(dense, layer, own, method, threshold, removal)
            on_layer(layer.name)
    return {layer.name: counts[layer.name] for layer in layers}, tied


def _zeros(
    dense: Model,
    layer: Layer,
    moments: Moments | None,
    method: Method,
    threshold: Threshold,
    removal: float,
) -> int:
    W = dense_matrix(dense, layer)
    unit, below = 1, 0
    if moments is None:  # a table has no output features, and its rows are words: magnitudes decide
        if threshold.kind != "attention":
            below = int(is_below(np.abs(W), threshold).sum())
    else:
        job = Job(layer, W, moments, 0, method.pattern)
        score = saliency(job, evidence_of(job, W, method), method, threshold)
        if layer_pattern(layer, method).kind == "rows":
            score, unit = score.mean(axis=2, dtype=np.float64), W.shape[2]
        below = int(is_below(score, threshold).sum())
    zeros = round(removal * below) * unit
    if zeros == layer.size:
        raise ModelError(
            f"all {layer.size} weights of {layer.name!r} are below the threshold",
            f"lower --threshold or --removal, or leave the weight alone with --exclude '{layer.name}'",
        )
    return zeros


def saliency(job: Job, evidence: Evidence, method: Method, threshold: Threshold) -> NDArray[np.floating]:
    """Return what the threshold is compared with: (groups, out_features, in_features).

    For ``obs`` the rise of the squared output error per row when that weight alone goes and the others make
    up for it, ``w^2 / [H^-1]_ii`` (Hassibi & Stork, "Second order derivatives for network pruning", 1993,
    without their factor 1/2), times what other criteria of the mixture make of it.
    """
    if threshold.kind == "attention":
        return np.broadcast_to(sample_attention(evidence)[:, :, None], job.W.shape)
    mixture = method.mixture
    if not mixture.solves:
        return mixed.saliency(mixture, evidence)
    H, _, _ = job.moments.centred(job.layer.name, job.layer.bias is not None and method.refit)
    inverse, _ = inverse_hessian(H, ridge(job.moments, H, method.damping))
    energy = np.square(job.W, dtype=np.float64) / np.einsum("gii->gi", inverse)[:, None, :]
    factors = mixed.emphasis(mixture, evidence)
    return np.asarray(energy if factors is None else energy * factors)


def is_below(score: NDArray[np.floating], threshold: Threshold) -> NDArray[np.bool_]:
    """Return where scores are below the threshold, the same shape; attention comes as shares of the mean."""
    limit = threshold.value
    if threshold.kind == "rel":
        limit *= float(score.mean(dtype=np.float64))
    return np.asarray(score < limit)
