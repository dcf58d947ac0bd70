"""Decide how many zeros each layer gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from numpy.typing import NDArray

from onnxprune.allocation import cached
from onnxprune.allocation.auto import CANDIDATES
from onnxprune.allocation.result import Measured, Plan
from onnxprune.allocation.rules import RULES
from onnxprune.allocation.rules.facts import Facts
from onnxprune.allocation.scores import score_layers
from onnxprune.allocation.sensitivity import LEVELS, Sensitivity, measure
from onnxprune.allocation.share import share_out
from onnxprune.allocation.threshold import count_below
from onnxprune.calibration.collect import find_stages
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams, sample_count
from onnxprune.evidence import collect_slopes
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.scoring.evidence import Slopes
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method
from onnxprune.threshold import Threshold

__all__ = ["Measured", "Plan", "make_plan", "measure_layers", "method_of", "probe_batches", "share_out"]

# Rows of output that the divergence of one layer is averaged over: 64 images, or the tokens of a few texts.
PROBE_ROWS = 64


def method_of(recipe: Recipe, *, quick: bool = False, slopes: Mapping[str, Slopes] | None = None) -> Method:
    """Return the part of the recipe that a single layer needs, and its gradients by weight name."""
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
        slopes or {},
    )


def make_plan(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, progress: Progress
) -> Plan:
    """Share the zeros among the layers by the recipe's allocation."""
    return share_out(model, layers, data, recipe, measure_layers(model, layers, data, recipe, progress))


def measure_layers(
    model: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    recipe: Recipe,
    progress: Progress,
    levels: tuple[float, ...] = LEVELS,
) -> Measured:
    """Measure what criterion and allocation have to know; any number of plans can be made from it.

    Args:
        model: the dense model.
        layers: what may be pruned.
        data: calibration samples.
        recipe: of the run.
        progress: told about each layer.
        levels: sparsities that each layer is tried at; N:M has only one.
    """
    slopes = collect_slopes(model, layers, data, recipe, progress)
    if recipe.threshold is not None:
        return _count_below(model, layers, data, recipe, slopes, progress)
    tied = any(len(layer.sites) > 1 for layer in layers)
    rule = None if recipe.plan else RULES.get(recipe.allocation)
    if recipe.plan and not tied:
        return Measured(slopes=slopes)
    if rule is None:
        found, from_cache = _measured(model, layers, data, recipe, slopes, progress, tied, levels)
        return Measured(found, {}, found.tied, from_cache, slopes)
    also = _measured(model, layers, data, recipe, slopes, progress, tied, levels)[0].tied if tied else {}
    if not rule.scored:
        return Measured(
            facts={layer.name: Facts.of(layer, 1.0) for layer in layers}, tied=also, slopes=slopes
        )
    return Measured(facts=_scored(model, layers, data, recipe, progress), tied=also, slopes=slopes)


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
            method_of(recipe, slopes=slopes),
            Threshold.parse(recipe.threshold),
            recipe.removal,
            seed=recipe.seed,
            on_layer=lambda _: progress.advance(),
        )
    return Measured(slopes=slopes, below=below, tied=tied)


def _scored(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, progress: Progress
) -> dict[str, Facts]:
    """Return the saliencies of the layers."""
    masks = [row_mask(batch) for batch in data.batches]
    targets = {stage.value for stage in find_stages(model, layers)}
    progress.stage("scoring the layers", len(layers))
    with ArrayStore(int(recipe.max_memory * 2**30)) as store, workers(recipe.threads):
        streams = Streams(model, None, data.batches, targets, store, recipe.threads, data.batched)
        used = None if recipe.criterion == "magnitude" else streams
        return score_layers(
            model, layers, used, masks, 1.0, seed=recipe.seed, on_layer=lambda _: progress.advance()
        )


def _measured(
    model: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    recipe: Recipe,
    slopes: Mapping[str, Slopes],
    progress: Progress,
    tied: bool,
    levels: tuple[float, ...],
) -> tuple[Sensitivity, bool]:
    if Pattern.parse(recipe.structure).kind == "nm":
        levels = (recipe.target_sparsity,)
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
            method_of(recipe, quick=True, slopes=slopes),
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
