"""The saliencies of all layers in one pass over the data: what rules compare layers by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.budget import GRID
from onnxprune.allocation.rules.facts import OUTLIER, Facts
from onnxprune.calibration.collect import collect, find_stages, token_counts
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.solvers.embedding import row_weights
from onnxprune.solvers.layer import dense_matrix

Floats = NDArray[np.float32]


def score_layers(
    dense: Model,
    layers: Sequence[Layer],
    streams: Streams | None,
    masks: Sequence[NDArray[np.bool_] | None],
    highest: float,
    *,
    seed: int,
    on_layer: Callable[[str], None] = lambda name: None,
) -> dict[str, Facts]:
    """Return the facts of every layer, in the order of ``layers``.

    Args:
        dense: the model.
        layers: what to score.
        streams: one stream (dense) over the calibration batches, not advanced yet; None scores by magnitude.
        masks: per batch, which tokens are real.
        highest: largest sparsity that a layer may get.
        seed: of the choice of rows.
        on_layer: called after each layer.
    """
    facts = {layer.name: Facts.of(layer, highest) for layer in layers}
    done: list[str] = []
    for stage in find_stages(dense, layers):
        norms, energy = None, None
        if streams is not None:
            streams.advance([stage.value], done)
            done = [stage.value]
            if stage.layers[0].kind == "embedding":
                counts = token_counts(streams, stage, masks)
                table = dense_matrix(dense, stage.layers[0])[0]
                norms = np.sqrt(row_weights(table, counts)).astype(np.float64)[None]
            else:
                moments = collect(streams, stage, masks, batches=range(streams.size), seed=seed)
                energy = moments.H / max(moments.n, 1)
                norms = np.sqrt(np.maximum(np.einsum("gii->gi", energy), 0.0))[:, None, :]
        for layer in stage.layers:
            facts[layer.name] = _scored(facts[layer.name], dense_matrix(dense, layer), norms, energy)
            on_layer(layer.name)
    return facts


def _scored(
    facts: Facts, W: Floats, norms: NDArray[np.float64] | None, H: NDArray[np.float64] | None
) -> Facts:
    """Score ``|W_ij| ||x_j||`` as Wanda does; between layers its square counts as a share of the output.

    Without statistics it is ``|W|``, between layers too.
    """
    score = np.abs(W) if norms is None else np.abs(W) * norms.astype(np.float32)
    mean = float(score.mean(dtype=np.float64))
    outliers = float(np.mean(score > OUTLIER * mean)) if mean > 0 else 0.0
    quantiles = np.quantile(score, GRID).astype(np.float64)
    if norms is not None:
        whole = float(np.square(score, dtype=np.float64).sum())
        if H is not None:  # what the layer puts out in all, inputs that go together included
            whole = float(np.einsum("goi,gij,goj->", W, H, W, optimize=True))
        quantiles = quantiles**2 / max(whole, 1e-300)
    return replace(facts, quantiles=quantiles, outliers=outliers)
