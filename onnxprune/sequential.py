"""Prune the layers in graph order, each on the already pruned prefix, towards the dense outputs.

The two streams (dense and pruned activations) advance together, so the whole walk costs one forward
pass of each model however many layers there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxprune.attention.guide import NOTHING, Guide
from onnxprune.calibration.collect import Stage, collect, find_stages, token_counts
from onnxprune.calibration.cut import Cutter
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.solvers import embedding
from onnxprune.solvers.layer import Floats, Job, Solution, dense_matrix, solve_layers
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method


@dataclass(frozen=True)
class Solved:
    """What happened to one layer.

    Attributes:
        name: of the weight.
        zeros: exact number of zeros in it now.
        error: relative error of the layer's output, ``||(W* - W') x||^2 / ||W* x||^2``; None for tables.
        damping: the recipe's; more when Cholesky failed. The ridge is this or what its noise asks for.
        refitted: True when a weight that stays dense was re-fitted.
        pattern: that its zeros obey.
    """

    name: str
    zeros: int
    error: float | None
    damping: float
    refitted: bool = False
    pattern: Pattern = field(default_factory=Pattern)


def layer_pattern(layer: Layer, method: Method) -> Pattern:
    """Return the pattern of a layer.

    No kernel looks rows up in blocks, so in tables they would only cost. Whole rows are for hidden features:
    those of tables are words, those of the last layer the answers of the model.
    """
    kind = method.pattern.kind
    answers = kind == "rows" and layer.name in method.heads
    table = kind in ("block", "rows") and layer.kind == "embedding"
    return Pattern() if answers or table else method.pattern


def open_residuals(cutter: Cutter, stage: Stage, unsolved: set[int]) -> list[str]:
    """Return the residual values of a stage that can be computed without any layer still to be solved."""
    found = []
    for layer in stage.layers:
        skip = layer.sites[stage.site].residual
        if skip and not cutter.ancestors([skip]) & unsolved:
            found.append(skip)
    return found


def prune_sequential(
    dense: Model,
    pruned: Model,
    layers: Sequence[Layer],
    zeros: Mapping[str, int],
    streams: Streams,
    masks: Sequence[NDArray[np.bool_] | None],
    method: Method,
    *,
    seed: int,
    patterns: Mapping[str, Pattern] | None = None,
    tied: Mapping[str, Moments] | None = None,
    repair: bool = True,
    guide: Guide = NOTHING,
    support: Mapping[str, NDArray[np.bool_]] | None = None,
    on_layer: Callable[[Solved], None] = lambda solved: None,
) -> tuple[Solved, ...]:
    """Prune every layer; ``pruned`` is changed in place.

    Args:
        dense: the model as it came.
        pruned: a copy of it, zeros set already where ``support`` is False.
        layers: what may change.
        zeros: layer name -> exact number of zeros; 0 leaves the layer dense (and re-fits it).
        streams: both models over the calibration batches, not advanced yet.
        masks: per batch, which tokens are real.
        method: how a matrix is pruned.
        seed: of the choice of rows.
        patterns: layer name -> pattern, where it is not the method's.
        tied: statistics of the second and later uses of tied weights, from the dense model.
        repair: aim at the dense model's outputs and correct the biases; otherwise only prune.
        guide: which tokens and outputs count more than others.
        support: weight name (or bias) -> (stored shape) False in whole rows and columns that stay zero.
        on_layer: called after each layer.
    """
    support = support or {}
    streams.weights_changed(support)
    unsolved = Counter(site.node for layer in layers for site in layer.sites)
    results: list[Solved] = []
    asked: set[str] = set()
    stages = find_stages(dense, layers)
    kinds = {layer.name: (patterns or {}).get(layer.name, layer_pattern(layer, method)) for layer in layers}
    for number, stage in enumerate(stages):
        skips = (
            open_residuals(streams.cutter, stage, set(unsolved))
            if repair and len(streams.models) == 2
            else []
        )
        reads, later = {*stage.reads, *skips}, _values_of(stages[number:])
        streams.advance([*stage.reads, *skips], sorted(asked - later))
        asked = (asked & later) | reads
        if stage.layers[0].kind == "embedding":
            counts = token_counts(streams, stage, masks)
            solutions = [
                solve_table(dense, layer, counts, zeros[layer.name], kinds[layer.name])
                for layer in stage.layers
            ]
        else:
            weights = {layer.name: dense_matrix(dense, layer) for layer in stage.layers}
            moments = collect(
                streams,
                stage,
                masks,
                batches=range(streams.size),
                seed=seed,
                residuals=bool(skips),
                weights=weights if repair else None,
                tokens=guide.tokens.get(stage.layers[0].name),
                places=stage.layers[0].name in guide.places,
            )
            jobs = _jobs(stage, weights, moments, zeros, kinds, tied or {}, guide, support)
            solutions = solve_layers(jobs, method, repair=repair)
        for layer, solution in zip(stage.layers, solutions, strict=True):
            streams.weights_changed(_store(solution, layer, dense, pruned, support))
            unsolved -= Counter(site.node for site in layer.sites)  # of a recurrent node two weights
            refitted = repair and zeros[layer.name] == 0
            pattern = kinds[layer.name] if solution.zeros else Pattern()
            results.append(
                Solved(layer.name, solution.zeros, solution.error, solution.damping, refitted, pattern)
            )
            on_layer(results[-1])
    return tuple(results)


def _values_of(stages: Sequence[Stage]) -> set[str]:
    """Return what these stages may ask the streams for."""
    return {
        value
        for stage in stages
        for value in (*stage.reads, *(layer.sites[0].residual for layer in stage.layers))
    }


def _store(
    solution: Solution, layer: Layer, dense: Model, pruned: Model, support: Mapping[str, NDArray[np.bool_]]
) -> list[str]:
    """Write a layer's new weight and bias to ``pruned``; return their names."""
    arrays = solution.arrays(dense, layer, pruned)
    for name, array in arrays.items():
        kept = support.get(name)
        pruned.set_array(name, array if kept is None else np.where(kept, array, array.dtype.type(0)))
    return list(arrays)


def _jobs(
    stage: Stage,
    weights: Mapping[str, Floats],
    moments: Moments,
    zeros: Mapping[str, int],
    patterns: Mapping[str, Pattern],
    tied: Mapping[str, Moments],
    guide: Guide,
    support: Mapping[str, NDArray[np.bool_]],
) -> list[Job]:
    """Return what is to be solved at a stage; ``tied`` adds the other uses of a weight."""
    return [
        Job(
            layer,
            weights[layer.name],
            moments + tied[layer.name] if layer.name in tied else moments,
            zeros[layer.name],
            patterns[layer.name],
            guide.rows.get(layer.name),
            layer.view.to_matrix(support[layer.name]).astype(bool) if layer.name in support else None,
        )
        for layer in stage.layers
    ]


def solve_table(
    dense: Model, layer: Layer, counts: NDArray[np.int64], zeros: int, pattern: Pattern
) -> Solution:
    """Prune one embedding table; ``counts`` (rows,) says how often each row was looked up."""
    W = dense_matrix(dense, layer)
    mask = embedding.keep(W[0], counts, pattern, zeros)
    return Solution(np.where(mask, W, np.float32(0)), int((~mask).sum()), None, None, 0.0)
