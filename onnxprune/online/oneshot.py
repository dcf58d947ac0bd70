"""Solve all layers from sums over the dense model's activations: nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.rules import RULES
from onnxprune.allocation.scores import scored
from onnxprune.allocation.sensitivity import LEVELS, Sensitivity
from onnxprune.calibration.collect import Stage
from onnxprune.calibration.stats import Moments
from onnxprune.layers import Layer
from onnxprune.layers.heads import heads
from onnxprune.model import Model
from onnxprune.plan import Measured, method_of
from onnxprune.recipe import Recipe
from onnxprune.sequential import layer_pattern, solve_table
from onnxprune.solvers.layer import Job, Solution, dense_matrix, solve_layers
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method

# Sums of a stage: moments of the rows that its layers multiply, or how often each row of its table is read.
Sums = Moments | NDArray[np.int64]


def measure_sums(model: Model, stages: Sequence[Stage], sums: Sequence[Sums], recipe: Recipe) -> Measured:
    """Return the layers' own error curves, and the sums of the later uses of tied weights.

    Args:
        model: the dense model.
        stages: of all sites.
        sums: one for each stage.
        recipe: of the run; where its allocation is a rule, what the rule goes by is returned instead.
    """
    tied: dict[str, Moments] = {}
    for stage, found in zip(stages, sums, strict=True):
        if stage.site and isinstance(found, Moments):
            for layer in stage.layers:
                tied[layer.name] = tied.get(layer.name, Moments.like(found)) + found
    if recipe.allocation in RULES:
        used = RULES[recipe.allocation].scored and recipe.criterion != "magnitude"
        facts = {
            layer.name: scored(layer, dense_matrix(model, layer), found if used else None, 1.0)
            for stage, found in zip(stages, sums, strict=True)
            if not stage.site
            for layer in stage.layers
        }
        return Measured(facts=facts, tied=tied)
    layers = [layer for stage in stages if not stage.site for layer in stage.layers]
    method = method_of(recipe, quick=True, last=heads(model, layers))
    levels = LEVELS if method.pattern.kind != "nm" else (recipe.target_sparsity,)
    wanted = {
        layer.name: tuple(layer_pattern(layer, method).zeros(layer.view.matrix, level) for level in levels)
        for stage in stages
        for layer in stage.layers
    }
    errors = {
        layer.name: tuple(solution.error or 0.0 for solution in found)
        for layer, found in solutions(model, stages, sums, method, wanted, {}, repair=recipe.refit)
    }
    return Measured(Sensitivity({}, errors, levels, tied), tied=tied)


def solutions(
    model: Model,
    stages: Sequence[Stage],
    sums: Sequence[Sums],
    method: Method,
    wanted: Mapping[str, Sequence[int]],
    tied: Mapping[str, Moments],
    *,
    repair: bool,
    patterns: Mapping[str, Pattern] | None = None,
) -> Iterator[tuple[Layer, list[Solution]]]:
    """Yield each layer with its solutions, one for each number of zeros that is ``wanted``.

    Args:
        model: the dense model.
        stages: of all sites; later uses of a weight are in ``tied``.
        sums: one for each stage.
        method: how a matrix is pruned.
        wanted: layer name -> numbers of zeros.
        tied: layer name -> sums of its later uses.
        repair: whether to correct biases.
        patterns: layer name -> pattern, where it is not the method's.
    """
    for stage, found in zip(stages, sums, strict=True):
        if stage.site:
            continue
        if isinstance(found, Moments):
            yield from _matrices(model, stage, found, method, wanted, tied, repair, patterns or {})
            continue
        for layer in stage.layers:
            pattern = (patterns or {}).get(layer.name, layer_pattern(layer, method))
            yield layer, [solve_table(model, layer, found, count, pattern) for count in wanted[layer.name]]


def _matrices(
    model: Model,
    stage: Stage,
    found: Moments,
    method: Method,
    wanted: Mapping[str, Sequence[int]],
    tied: Mapping[str, Moments],
    repair: bool,
    patterns: Mapping[str, Pattern],
) -> Iterator[tuple[Layer, list[Solution]]]:
    jobs = []
    for layer in stage.layers:
        W = dense_matrix(model, layer)
        moments = found + tied[layer.name] if layer.name in tied else found
        pattern = patterns.get(layer.name, layer_pattern(layer, method))
        jobs += [Job(layer, W, moments, count, pattern) for count in wanted[layer.name]]
    solved = iter(solve_layers(jobs, method, repair=repair))
    for layer in stage.layers:
        yield layer, [next(solved) for _ in wanted[layer.name]]
