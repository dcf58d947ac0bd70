"""Decide how many zeros each layer gets."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import NDArray

from onnxprune.allocation import cached
from onnxprune.allocation.auto import CANDIDATES
from onnxprune.allocation.result import Measured, Plan
from onnxprune.allocation.rules import RULES
from onnxprune.allocation.rules.facts import Facts
from onnxprune.allocation.scores import score_layers
from onnxprune.allocation.sensitivity import LEVELS, Sensitivity, measure
from onnxprune.allocation.share import share_out
from onnxprune.calibration.collect import find_stages
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams, sample_count
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method

__all__ = ["Measured", "Plan", "make_plan", "measure_layers", "method_of", "probe_batches", "share_out"]

# Rows of output that the divergence of one layer is averaged over: 64 images, or the tokens of a few texts.
PROBE_ROWS = 64


def method_of(recipe: Recipe, *, quick: bool = False) -> Method:
    """Return the part of the recipe that a single layer needs."""
    return Method(
        recipe.criterion,
        recipe.solver,
        Pattern.parse(recipe.base_pattern),
        recipe.damping,
        recipe.refit,
        quick,
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
    """Measure what the recipe's allocation has to know; any number of plans can be made from it.

    Args:
        model: the dense model.
        layers: what may be pruned.
        data: calibration samples.
        recipe: of the run.
        progress: told about each layer.
        levels: sparsities that each layer is tried at; N:M has only one.
    """
    tied = any(len(layer.sites) > 1 for layer in layers)
    rule = None if recipe.plan else RULES.get(recipe.allocation)
    if recipe.plan and not tied:
        return Measured()
    if rule is None:
        found, from_cache = _measured(model, layers, data, recipe, progress, tied, levels)
        return Measured(found, {}, found.tied, from_cache)
    also = _measured(model, layers, data, recipe, progress, tied, levels)[0].tied if tied else {}
    if not rule.scored:
        return Measured(facts={layer.name: Facts.of(layer, 1.0) for layer in layers}, tied=also)
    return Measured(facts=_scored(model, layers, data, recipe, progress), tied=also)


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
    progress: Progress,
    tied: bool,
    levels: tuple[float, ...],
) -> tuple[Sensitivity, bool]:
    if Pattern.parse(recipe.base_pattern).kind == "nm":
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
            method_of(recipe, quick=True),
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
