"""The saliencies of all layers in one pass over the data: what rules compare layers by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.budget import GRID
from onnxprune.allocation.rules.facts import OUTLIER, Facts
from onnxprune.allocation.walk import Seen, add_tied, walk
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.solvers.embedding import row_weights
from onnxprune.solvers.layer import dense_matrix

Floats = NDArray[np.float32]


def score_layers(
    dense: Model,
    layers: Sequence[Layer],
    streams: Streams,
    masks: Sequence[NDArray[np.bool_] | None],
    highest: float,
    *,
    by_inputs: bool,
    seed: int,
    on_layer: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, Facts], dict[str, Moments]]:
    """Return the facts of every layer, in the order of ``layers``, and what tied weights see in later uses.

    Args:
        dense: the model.
        layers: what to score.
        streams: one stream (dense) over the calibration batches, not advanced yet.
        masks: per batch, which tokens are real.
        highest: largest sparsity that a layer may get.
        by_inputs: score by the inputs too, not by magnitude alone.
        seed: of the choice of rows.
        on_layer: called after each layer.
    """
    facts: dict[str, Facts] = {}
    tied: dict[str, Moments] = {}
    for stage, seen in walk(dense, layers, streams, masks, seed=seed):
        add_tied(tied, stage, seen)
        for layer in stage.layers if not stage.site else ():
            facts[layer.name] = scored(
                layer, dense_matrix(dense, layer), seen if by_inputs else None, highest
            )
            on_layer(layer.name)
    return {layer.name: facts[layer.name] for layer in layers}, tied


def scored(layer: Layer, W: Floats, seen: Seen | None, highest: float) -> Facts:
    """Return the facts of a layer.

    Scores are ``|W_ij| ||x_j||`` as Wanda has them; between layers their squares count, as shares of what the
    layer puts out in all. Without statistics they are ``|W|``, between layers too.

    Args:
        layer: what to score.
        W: (groups, out_features, in_features) its weight.
        seen: statistics of its inputs; of a table, how often each row was read; or None.
        highest: largest sparsity that it may get.
    """
    facts, score, whole = Facts.of(layer, highest), np.abs(W), 0.0
    if isinstance(seen, Moments):
        H = seen.H / max(seen.n, 1)
        score = score * np.sqrt(np.maximum(np.einsum("gii->gi", H), 0.0))[:, None, :].astype(np.float32)
        whole = float(np.einsum("goi,gij,goj->", W, H, W, optimize=True))
    elif seen is not None:
        score = score * np.sqrt(row_weights(W[0], seen))[None]
        whole = float(np.square(score, dtype=np.float64).sum())
    mean = float(score.mean(dtype=np.float64))
    outliers = float(np.mean(score > OUTLIER * mean)) if mean > 0 else 0.0
    quantiles = np.quantile(score, GRID).astype(np.float64)
    if seen is not None:
        quantiles = quantiles**2 / max(whole, 1e-300)
    return replace(facts, quantiles=quantiles, outliers=outliers)
