"""Measure how much each layer moves the model's output when it alone is pruned.

The dense activations are carried along; at each layer only the rest of the graph runs, with the
layer's weight as an input, so that one session serves every candidate of every layer there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.collect import Stage, collect, find_stages, token_counts
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import DENSE, Streams, run, session_threads
from onnxprune.divergence import total_divergence
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.outputs import OutputKind, output_kind
from onnxprune.parallel import map_threads
from onnxprune.sequential import layer_pattern, solve_table
from onnxprune.solvers.layer import Job, Solution, dense_matrix, solve_layers
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method

# Sparsities tried on each layer. A third costs half as much time again; its effect alone was not measured.
LEVELS = (0.6, 0.85)
MAX_REFERENCE = 2**28  # bytes of outputs that the layers are compared with: maps of many classes are large


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
        on_layer: called after each layer.
    """
    threads = session_threads(len(probes), streams.threads)  # here: in other threads there are no workers
    fit = [number for number in range(streams.size) if number not in set(probes)] or list(range(streams.size))
    found = Sensitivity({}, {}, levels, {}, {pattern: {} for pattern in others})
    stages = [stage for site in range(_sites(layers)) for stage in find_stages(dense, layers, site)]
    stages.sort(key=lambda stage: (dense.index.producer.get(stage.value, -1), stage.value))
    reference: list[list[Any]] | None = None
    kinds: list[OutputKind] = []
    done: list[str] = []
    for stage in stages:
        streams.advance([stage.value], done)
        done = [stage.value]
        if stage.layers[0].kind == "embedding":
            counts = token_counts(streams, stage, masks)
            solve = _table_candidates(dense, counts, method)
        else:
            moments = collect(streams, stage, masks, batches=fit, seed=seed)
            if stage.site > 0:
                for layer in stage.layers:
                    found.tied[layer.name] = found.tied.get(layer.name, Moments.like(moments)) + moments
                continue
            solve = _matrix_candidates(dense, moments, method, repair)
        if stage.site > 0:
            continue
        with ThreadPoolExecutor(1) as beside:  # a session is made in one thread
            making = beside.submit(_Tail, dense, streams, stage, probes, threads) if outputs else None
            solved = iter(solve(stage.layers, levels))
            tail = making.result() if making else None
        if tail is not None and reference is None:
            reference = _reference(tail, probes)
            kinds = [
                output_kind(name, value, dense)
                for name, value in zip(dense.index.outputs, reference[0], strict=True)
            ]
        for layer in stage.layers:
            errors, moved = [], []
            for _ in levels:
                solution = next(solved)
                errors.append(solution.error or 0.0)
                if tail is not None and reference is not None:
                    moved.append(tail.divergence(layer, solution, reference, kinds, masks))
            found.error[layer.name], found.output[layer.name] = tuple(errors), tuple(moved)
            on_layer(layer.name)
        if stage.layers[0].kind != "embedding":
            for pattern in others:
                again = _matrix_candidates(dense, moments, replace(method, pattern=pattern), repair)
                solved = iter(again(stage.layers, levels))
                for layer in stage.layers:
                    found.others[pattern][layer.name] = tuple(next(solved).error or 0.0 for _ in levels)
    return found


def _reference(tail: _Tail, probes: Sequence[int]) -> list[list[Any]]:
    """Return the dense model's outputs for as many of the probes as fit in :data:`MAX_REFERENCE`."""
    found: list[list[Any]] = []
    held = 0
    for number in probes:
        found.append(tail.run(number, {}))
        held += sum(output.nbytes for output in found[-1])
        if held > MAX_REFERENCE:
            break
    return found


def _sites(layers: Sequence[Layer]) -> int:
    return max((len(layer.sites) for layer in layers), default=0)


Candidates = Callable[[Sequence[Layer], Sequence[float]], list[Solution]]


def _table_candidates(dense: Model, counts: NDArray[np.int64], method: Method) -> Candidates:
    return lambda layers, levels: [
        solve_table(dense, layer, counts, pattern.zeros(layer.view.matrix, level), pattern)
        for layer in layers
        for pattern in [layer_pattern(layer, method.pattern)]
        for level in levels
    ]


def _matrix_candidates(dense: Model, moments: Moments, method: Method, repair: bool) -> Candidates:
    """Return the solver of one stage: every layer at every level, layer by layer."""

    def solve(layers: Sequence[Layer], levels: Sequence[float]) -> list[Solution]:
        jobs = [
            Job(layer, W, moments, method.pattern.zeros(layer.view.matrix, level), method.pattern)
            for layer, W in [(layer, dense_matrix(dense, layer)) for layer in layers]
            for level in levels
        ]
        return solve_layers(jobs, method, repair=repair)

    return solve


class _Tail:
    """The graph from one stage to the outputs, with the weights and biases of its layers as inputs."""

    def __init__(
        self, dense: Model, streams: Streams, stage: Stage, probes: Sequence[int], threads: int | None
    ) -> None:
        names = [layer.name for layer in stage.layers]
        names += [layer.bias.name for layer in stage.layers if layer.bias]
        self.dense, self.streams, self.probes = dense, streams, probes
        self.values = {name: dense.array(name) for name in names}
        segment, self.session = streams.tail(list(dense.index.outputs), names, threads)
        self.inputs = [name for name in segment.inputs if name not in self.values]
        self.read = set(names) & set(segment.inputs)

    def run(self, number: int, changed: Mapping[str, NDArray[np.generic]]) -> list[Any]:
        """Return the model's outputs on batch ``number`` with some of the constants replaced."""
        feeds = {name: self.streams.value(name, number, DENSE) for name in self.inputs}
        feeds.update({name: changed.get(name, self.values[name]) for name in self.read})
        return list(run(self.session, list(self.dense.index.outputs), feeds))

    def divergence(
        self,
        layer: Layer,
        solution: Solution,
        reference: Sequence[Sequence[Any]],
        kinds: Sequence[OutputKind],
        masks: Sequence[NDArray[np.bool_] | None],
    ) -> float:
        changed = solution.arrays(self.dense, layer)

        def moved(place: int) -> tuple[float, int]:
            """Return how far the outputs of one batch are, and its rows; the outputs are not kept."""
            number, outputs = self.probes[place], reference[place]
            distance = total_divergence(kinds, outputs, self.run(number, changed), masks[number])
            return distance, len(outputs[0]) if outputs[0].ndim else 1

        found = map_threads(moved, range(len(reference)))
        return sum(distance for distance, _ in found) / max(sum(rows for _, rows in found), 1)
