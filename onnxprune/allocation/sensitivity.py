"""Prune each layer alone; measure its own error and how much it moves the model's output.

The dense activations are carried along, so that the statistics cost one forward pass in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.effect import Effects
from onnxprune.allocation.walk import Seen, add_tied, walk
from onnxprune.attention.guide import NOTHING, Guide
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.sequential import layer_pattern, solve_table
from onnxprune.solvers.layer import Job, Solution, dense_matrix, solve_layers
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method

# Sparsities tried on each layer. A third costs half as much time again; its effect alone was not measured.
LEVELS = (0.6, 0.85)


@dataclass(frozen=True)
class Sensitivity:
    """What the dense pass found.

    Attributes:
        output: layer name -> divergence of the model's output at each of ``levels`` (mean per row).
        error: layer name -> relative output error of the layer itself at each of ``levels``.
        levels: sparsities.
        tied: statistics of the second and later uses of tied weights.
        others: pattern -> layer name -> the same as ``error``, with that pattern.
    """

    output: dict[str, tuple[float, ...]]
    error: dict[str, tuple[float, ...]]
    levels: tuple[float, ...]
    tied: dict[str, Moments]
    others: dict[Pattern, dict[str, tuple[float, ...]]] = field(default_factory=dict)


def measure(
    dense: Model,
    layers: Sequence[Layer],
    streams: Streams,
    masks: Sequence[NDArray[np.bool_] | None],
    probes: Sequence[int],
    method: Method,
    *,
    seed: int,
    repair: bool = True,
    outputs: bool = True,
    levels: tuple[float, ...] = LEVELS,
    others: Sequence[Pattern] = (),
    guide: Guide = NOTHING,
    on_layer: Callable[[str], None] = lambda name: None,
) -> Sensitivity:
    """Prune each layer alone at each level; see how far the layer's and the model's output move.

    Args:
        dense: the model.
        layers: what to measure.
        streams: one stream (dense) over the calibration batches, not advanced yet.
        masks: per batch, which tokens are real.
        probes: batches that the outputs are compared on; the others give the statistics, so that a
            layer with few rows is not judged on the rows it was fitted to.
        method: how a matrix is pruned; a quick variant is enough.
        seed: of the choice of rows.
        repair: whether the pruning run will correct biases.
        outputs: False measures the layers' own errors only.
        levels: sparsities to try.
        others: patterns that the layers' own errors are measured with as well; not of tables.
        guide: which tokens and outputs count more than others.
        on_layer: called after each layer.
    """
    fit = [number for number in range(streams.size) if number not in set(probes)] or list(range(streams.size))
    found = Sensitivity({}, {}, levels, {}, {pattern: {} for pattern in others})
    with Effects(dense, streams, masks, probes, on_layer) as effects:
        for stage, seen in walk(dense, layers, streams, masks, seed=seed, batches=fit, guide=guide):
            if stage.site:
                add_tied(found.tied, stage, seen)
                continue
            solve = _candidates(dense, seen, method, repair, guide)
            making = effects.rest_of(stage) if outputs else None
            candidates = _by_layer(stage.layers, solve(stage.layers, levels))
            found.error.update(_errors(candidates))
            effects.measure(making, stage.layers, candidates)
            del making, candidates  # as large as the layers
            for pattern in others if isinstance(seen, Moments) else ():
                again = _candidates(dense, seen, replace(method, pattern=pattern), repair, guide)
                found.others[pattern].update(_errors(_by_layer(stage.layers, again(stage.layers, levels))))
    found.output.update(effects.found)
    return found


def _by_layer(layers: Sequence[Layer], solved: Sequence[Solution]) -> dict[str, Sequence[Solution]]:
    """Take apart what :data:`Candidates` give: as many solutions for each layer."""
    each = len(solved) // len(layers)
    return {layer.name: solved[k * each : (k + 1) * each] for k, layer in enumerate(layers)}


def _errors(candidates: Mapping[str, Sequence[Solution]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(solution.error or 0.0 for solution in found) for name, found in candidates.items()}


Candidates = Callable[[Sequence[Layer], Sequence[float]], list[Solution]]


def _candidates(dense: Model, seen: Seen, method: Method, repair: bool, guide: Guide) -> Candidates:
    """Return the solver of one stage."""
    if isinstance(seen, Moments):
        return _matrix_candidates(dense, seen, method, repair, guide)
    return _table_candidates(dense, seen, method)


def _table_candidates(dense: Model, counts: NDArray[np.int64], method: Method) -> Candidates:
    return lambda layers, levels: [
        solve_table(dense, layer, counts, pattern.zeros(layer.view.matrix, level), pattern)
        for layer in layers
        for pattern in [layer_pattern(layer, method)]
        for level in levels
    ]


def _matrix_candidates(
    dense: Model, moments: Moments, method: Method, repair: bool, guide: Guide
) -> Candidates:
    """Return the solver of one stage: every layer at every level, layer by layer."""

    def solve(layers: Sequence[Layer], levels: Sequence[float]) -> list[Solution]:
        jobs = [
            Job(
                layer,
                W,
                moments,
                pattern.zeros(layer.view.matrix, level),
                pattern,
                guide.rows.get(layer.name),
            )
            for layer, W, pattern in [
                (layer, dense_matrix(dense, layer), layer_pattern(layer, method)) for layer in layers
            ]
            for level in levels
        ]
        return solve_layers(jobs, method, repair=repair)

    return solve
