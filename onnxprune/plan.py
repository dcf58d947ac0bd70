"""Decide how many zeros each layer gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from numpy.typing import NDArray

from onnxprune.allocation import cached
from onnxprune.allocation.auto import CANDIDATES
from onnxprune.allocation.result import Measured, Plan
from onnxprune.allocation.rules import RULES
from onnxprune.allocation.rules.facts import Facts
from onnxprune.allocation.scores import score_layers
from onnxprune.allocation.sensitivity import LEVELS, measure
from onnxprune.allocation.share import share_out
from onnxprune.allocation.threshold import count_below
from onnxprune.allocation.walk import all_stages
from onnxprune.attention.guide import Guide, make_guide
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams, sample_count
from onnxprune.evidence import collect_slopes
from onnxprune.layers import Layer
from onnxprune.layers.heads import heads
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.recipe.threshold import Threshold
from onnxprune.scoring.evidence import Slopes
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method

__all__ = ["Measured", "Plan", "make_plan", "measure_layers", "method_of", "probe_batches", "share_out"]

# Rows of output that the divergence of one layer is averaged over: 64 images, or the tokens of a few texts.
PROBE_ROWS = 64


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
    guide = make_guide(model, layers, data, recipe)
    rule = RULES.get(recipe.allocation)
    if recipe.threshold is not None:
        found = _count_below(model, layers, data, recipe, slopes, progress)
    elif recipe.plan is not None or rule is not None:
        scored = rule is not None and rule.scored and recipe.plan is None
        found = _facts(model, layers, data, recipe, progress, scored)
    else:
        found = _curves(model, layers, data, recipe, slopes, progress, levels, guide)
    return replace(found, slopes=slopes, guide=guide)


@contextmanager
def _dense_stream(
    model: Model, data: CalibrationData, recipe: Recipe, targets: Iterable[str]
) -> Iterator[Streams]:
    """Open the stream of the dense model, on the recipe's threads and within its memory."""
    with ArrayStore(int(recipe.max_memory * 2**30)) as store, workers(recipe.threads):
        yield Streams(model, None, data.batches, targets, store, recipe.threads, data.batched)


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
    targets = {name for stage in all_stages(model, layers) for name in stage.reads}
    progress.stage("comparing with the threshold", len(layers))
    with _dense_stream(model, data, recipe, targets) as streams:
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
    return Measured(below=below, tied=tied)


def _facts(
    model: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    recipe: Recipe,
    progress: Progress,
    scored: bool,
) -> Measured:
    """Return what rules go by, and the statistics of the later uses of tied weights, which solvers need."""
    if not scored and all(len(layer.sites) == 1 for layer in layers):
        return Measured(facts={layer.name: Facts.of(layer, 1.0) for layer in layers})
    masks = [row_mask(batch) for batch in data.batches]
    targets = {name for stage in all_stages(model, layers) for name in stage.reads}
    progress.stage("scoring the layers", len(layers))
    with _dense_stream(model, data, recipe, targets) as streams:
        facts, tied = score_layers(
            model,
            layers,
            streams,
            masks,
            1.0,
            by_inputs=scored and recipe.criterion != "magnitude",
            seed=recipe.seed,
            on_layer=lambda _: progress.advance(),
        )
    return Measured(facts=facts, tied=tied)


def _curves(
    model: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    recipe: Recipe,
    slopes: Mapping[str, Slopes],
    progress: Progress,
    levels: tuple[float, ...],
    guide: Guide,
) -> Measured:
    """Return what pruning each layer alone does, from the cache where it is known."""
    tied = any(len(layer.sites) > 1 for layer in layers)
    if Pattern.parse(recipe.structure).kind == "nm":
        levels = (recipe.target_sparsity,)
    outputs = recipe.allocation == "sensitivity"
    others = CANDIDATES[1:] if recipe.pattern == "auto" else ()
    path = cached.cache_path(model, layers, data, recipe, levels)
    if recipe.cache and not tied and (found := cached.read(path, layers, levels, outputs, others)):
        return Measured(found, {}, found.tied, cached=True)
    masks = [row_mask(batch) for batch in data.batches]
    targets = {name for stage in all_stages(model, layers) for name in stage.reads}
    if outputs:
        targets |= set(model.index.outputs)
    progress.stage("measuring the layers", len(layers))
    with _dense_stream(model, data, recipe, targets) as streams:
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
            guide=guide,
            on_layer=lambda _: progress.advance(),
        )
    if recipe.cache and not tied:
        cached.write(path, found)
    return Measured(found, {}, found.tied)


def probe_batches(data: CalibrationData, masks: Sequence[NDArray | None]) -> list[int]:  # type: ignore[type-arg]
    """Choose the batches that outputs are compared on: spread evenly, at most half of the samples."""
    rows = [
        int(mask.sum()) // 4 if mask is not None else sample_count(batch, data.batched)
        for batch, mask in zip(data.batches, masks, strict=True)
    ]
    count = len(rows)
    wanted = max(1, min(count // 2, round(PROBE_ROWS / max(1.0, sum(rows) / count))))
    return sorted({(2 * k + 1) * count // (2 * wanted) for k in range(wanted)})
