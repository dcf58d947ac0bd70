"""Decide how many zeros each layer gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation import cached
from onnxprune.allocation.auto import CANDIDATES, Choice, Choices, fastest, least_damage
from onnxprune.allocation.budget import GRID, Curve, allocate, uniform
from onnxprune.allocation.sensitivity import LEVELS, Sensitivity, measure
from onnxprune.allocation.speed import dense_costs, relative_times
from onnxprune.allocation.threshold import count_below
from onnxprune.calibration.collect import find_stages
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams, sample_count
from onnxprune.evidence import collect_slopes
from onnxprune.kernels.select import typical_feeds
from onnxprune.layers import Layer, heads
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.scoring.evidence import Slopes
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method
from onnxprune.threshold import Threshold

# Rows of output that the divergence of one layer is averaged over: 64 images, or the tokens of a few texts.
PROBE_ROWS = 64


@dataclass(frozen=True)
class Plan:
    """How much each layer is pruned.

    Attributes:
        zeros: weight name -> number of zeros.
        patterns: weight name -> pattern, where it is not the recipe's.
        sensitivity: weight name -> divergence of the model's output, this layer alone at the lowest level.
        tied: statistics of the later uses of tied weights.
        cached: True when the measurements came from the cache.
        slopes: weight name -> its gradients in the dense model, where the criterion needs them.
    """

    zeros: dict[str, int]
    sensitivity: dict[str, float]
    tied: dict[str, Moments]
    cached: bool = False
    patterns: dict[str, Pattern] = field(default_factory=dict)
    slopes: Mapping[str, Slopes] = field(default_factory=dict)


def method_of(
    recipe: Recipe,
    *,
    quick: bool = False,
    slopes: Mapping[str, Slopes] | None = None,
    last: frozenset[str] = frozenset(),
) -> Method:
    """Return the part of the recipe that a single layer needs.

    Args:
        recipe: of the run.
        quick: fewer iterations, for an estimate.
        slopes: gradients by weight name.
        last: see :func:`onnxprune.layers.heads`.
    """
    threshold = None if recipe.threshold is None else Threshold.parse(recipe.threshold)
    return Method(
        recipe.criterion,
        recipe.solver,
        Pattern.parse(recipe.structure),
        recipe.damping,
        recipe.refit,
        quick,
        recipe.alpha,
        recipe.seed if recipe.selection == "sample" else None,
        threshold.value if threshold is not None and threshold.kind == "attention" else None,
        last,
        slopes or {},
    )


def total_zeros(layers: Sequence[Layer], recipe: Recipe) -> int:
    """Return how many zeros the recipe asks for over all layers."""
    return round(recipe.target_sparsity * sum(layer.size for layer in layers))


@dataclass(frozen=True)
class Measured:
    """What is known of the layers before any sparsity is chosen.

    Attributes:
        sensitivity: error curves; None when the allocation needs none.
        cached: True when they came from the cache.
        slopes: weight name -> its gradients, where the criterion needs them.
        below: weight name -> zeros, with a threshold.
        tied: statistics of the later uses of tied weights, with a threshold.
    """

    sensitivity: Sensitivity | None = None
    cached: bool = False
    slopes: Mapping[str, Slopes] = field(default_factory=dict)
    below: dict[str, int] | None = None
    tied: dict[str, Moments] = field(default_factory=dict)


def make_plan(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, progress: Progress
) -> Plan:
    """Share the zeros among the layers by the recipe's allocation."""
    return share_out(model, layers, data, recipe, measure_layers(model, layers, data, recipe, progress))


def measure_layers(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, progress: Progress
) -> Measured:
    """Measure what criterion and allocation have to know; any number of plans can be made from it."""
    slopes = collect_slopes(model, layers, data, recipe, progress)
    if recipe.threshold is not None:
        return _count_below(model, layers, data, recipe, slopes, progress)
    tied = any(len(layer.sites) > 1 for layer in layers)
    if recipe.allocation == "uniform" and not tied:
        return Measured(slopes=slopes)
    return Measured(*_measured(model, layers, data, recipe, slopes, progress, tied), slopes)


def _count_below(
    model: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    recipe: Recipe,
    slopes: Mapping[str, Slopes],
    progress: Progress,
) -> Measured:
    """Count what lies below the recipe's threshold."""
    assert recipe.threshold is not None
    sites = range(_sites(layers))
    targets = {stage.value for site in sites for stage in find_stages(model, layers, site)}
    progress.stage("comparing with the threshold", len(layers))
    with ArrayStore(int(recipe.max_memory * 2**30)) as store, workers(recipe.threads):
        streams = Streams(model, None, data.batches, targets, store, recipe.threads, data.batched)
        below, tied = count_below(
            model,
            layers,
            streams,
            [row_mask(batch) for batch in data.batches],
            method_of(recipe, slopes=slopes, last=heads(model, layers)),
            Threshold.parse(recipe.threshold),
            recipe.removal,
            seed=recipe.seed,
            on_layer=lambda _: progress.advance(),
        )
    return Measured(slopes=slopes, below=below, tied=tied)


def share_out(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, measured: Measured
) -> Plan:
    """Share as many zeros as the recipe asks for among the layers, by what was measured of them."""
    if measured.below is not None:
        return Plan(measured.below, {}, measured.tied, slopes=measured.slopes)
    return replace(_share_out(model, layers, data, recipe, measured), slopes=measured.slopes)


def _share_out(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, measured: Measured
) -> Plan:
    sizes = {layer.name: layer.size for layer in layers}
    zeros, found = total_zeros(layers, recipe), measured.sensitivity
    if found is None or recipe.allocation == "uniform":
        tied = found.tied if found is not None else {}
        return Plan(_fit_pattern(uniform(sizes, zeros), layers, recipe), {}, tied)
    by = found.output if recipe.allocation == "sensitivity" else found.error
    curves = {
        layer.name: Curve(layer.size, found.levels, by[layer.name], _highest(layer, recipe))
        for layer in layers
    }
    sensitivity = {name: values[0] for name, values in found.output.items() if values}
    counts = allocate(curves, zeros)
    if recipe.pattern == "auto":
        chosen = _choose(_choices(model, layers, data, found, curves), curves, counts, recipe.speedup)
        zeros_of = counts | {name: choice.zeros for name, choice in chosen.items()}
        patterns = {name: choice.pattern for name, choice in chosen.items()}
        return Plan(zeros_of, sensitivity, found.tied, measured.cached, patterns)
    return Plan(_fit_pattern(counts, layers, recipe, by), sensitivity, found.tied, measured.cached)


def _choose(
    choices: Mapping[str, Choices],
    curves: Mapping[str, Curve],
    counts: Mapping[str, int],
    speedup: float | None,
) -> dict[str, Choice]:
    """Choose for the speed asked for, or else for the damage that ``counts`` zeros do without a pattern."""
    if speedup is not None:
        return least_damage(choices, speedup)
    return fastest(choices, sum(curves[name].at(counts[name]) for name in choices))


def _choices(
    model: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    found: Sensitivity,
    curves: Mapping[str, Curve],
) -> dict[str, Choices]:
    """Return what each layer may become with ``--pattern auto``; those that no kernel speeds up are left out.

    How far a pattern moves the model's output is not measured: it is what the layer alone moves it by without
    a pattern, times the ratio of the layer's own errors. Both are of second order in what changes.
    """
    times = dense_costs(model, layers, typical_feeds(data)[:1])
    choices = {}
    for layer in layers:
        relative = np.array([relative_times(layer, pattern, GRID) for pattern in CANDIDATES])
        if layer.kind == "embedding" or relative.min() == 1 or not times[layer.name]:
            continue
        plain, curve = np.asarray(found.error[layer.name]), curves[layer.name]
        costs = [curve.on_grid()]
        for pattern in CANDIDATES[1:]:
            ratio = np.asarray(found.others[pattern][layer.name]) / np.maximum(plain, 1e-12)
            costs.append(replace(curve, cost=tuple((ratio * curve.cost).tolist())).on_grid())
        choices[layer.name] = Choices(layer.size, times[layer.name], CANDIDATES, np.array(costs), relative)
    return choices


def _highest(layer: Layer, recipe: Recipe) -> float:
    return 0.98 if recipe.target_sparsity <= 0.95 else 1.0 - (1.0 - recipe.target_sparsity) / 4


def _fit_pattern(
    counts: dict[str, int],
    layers: Sequence[Layer],
    recipe: Recipe,
    costs: dict[str, tuple[float, ...]] | None = None,
) -> dict[str, int]:
    """Make the counts ones that the pattern can have. N:M is all or nothing: the cheapest layers get it."""
    pattern = Pattern.parse(recipe.structure)
    if pattern.kind != "nm":
        return counts
    full = {layer.name: pattern.zeros(layer.view.matrix, 1.0) for layer in layers}
    order = sorted(full, key=lambda name: (costs or {}).get(name, (0.0,))[0] / max(full[name], 1))
    budget, fitted = total_zeros(layers, recipe), dict.fromkeys(counts, 0)
    for name in order:
        # Stop at the nearest total; with the default sparsity every layer is within it.
        if sum(fitted.values()) + full[name] / 2 <= budget:
            fitted[name] = full[name]
    return fitted


def _measured(
    model: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    recipe: Recipe,
    slopes: Mapping[str, Slopes],
    progress: Progress,
    tied: bool,
) -> tuple[Sensitivity, bool]:
    levels = LEVELS if Pattern.parse(recipe.structure).kind != "nm" else (recipe.target_sparsity,)
    outputs = recipe.allocation == "sensitivity"
    others = CANDIDATES[1:] if recipe.pattern == "auto" else ()
    path = cached.cache_path(model, layers, data, recipe, levels)
    if recipe.cache and not tied and (found := cached.read(path, layers, levels, outputs, others)):
        return found, True
    batches = data.batches
    masks = [row_mask(batch) for batch in batches]
    targets = {stage.value for site in range(_sites(layers)) for stage in find_stages(model, layers, site)}
    if outputs:
        targets |= set(model.index.outputs)
    progress.stage("measuring the layers", len(layers))
    with ArrayStore(int(recipe.max_memory * 2**30)) as store, workers(recipe.threads):
        streams = Streams(model, None, batches, targets, store, recipe.threads, data.batched)
        found = measure(
            model,
            layers,
            streams,
            masks,
            probe_batches(data, masks),
            method_of(recipe, quick=True, slopes=slopes, last=heads(model, layers)),
            seed=recipe.seed,
            repair=recipe.refit,
            outputs=outputs,
            levels=levels,
            others=others,
            on_layer=lambda _: progress.advance(),
        )
    if recipe.cache and not tied:
        cached.write(path, found)
    return found, False


def _sites(layers: Sequence[Layer]) -> int:
    return max((len(layer.sites) for layer in layers), default=0)


def probe_batches(data: CalibrationData, masks: Sequence[NDArray | None]) -> list[int]:  # type: ignore[type-arg]
    """Choose the batches that outputs are compared on: spread evenly, at most half of the samples."""
    rows = [
        int(mask.sum()) // 4 if mask is not None else sample_count(batch, data.batched)
        for batch, mask in zip(data.batches, masks, strict=True)
    ]
    count = len(rows)
    wanted = max(1, min(count // 2, round(PROBE_ROWS / max(1.0, sum(rows) / count))))
    return sorted({(2 * k + 1) * count // (2 * wanted) for k in range(wanted)})
