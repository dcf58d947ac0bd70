"""Structured pruning as one stage: a smaller model from a dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import runtime
from onnxprune.allocation.widths import Work, total
from onnxprune.attention.guide import NOTHING, Guide, make_guide
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.errors import ModelError
from onnxprune.inmemory import session_of
from onnxprune.kernels.select import typical_feeds
from onnxprune.kernels.stopwatch import best_times
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.plan import probe_batches
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.recipe.structured import shares
from onnxprune.slim.choose import Choice, evenly, for_share, for_speed, masks, widths
from onnxprune.slim.compensate import compensated
from onnxprune.slim.latency import time_works
from onnxprune.slim.measure import Narrowing, measure
from onnxprune.slim.readers import find_readers
from onnxprune.slim.works import Owners, Shapes, flop_works, weight_works
from onnxprune.structure.check import check_removal, remove_checked
from onnxprune.structure.find import find_structure
from onnxprune.structure.groups import Structure
from onnxprune.structure.removal import remove_units
from onnxprune.structure.sample import sample

_SECONDS = 2.0  # for the turns of two models


@dataclass(frozen=True)
class Ready:
    """What is known before any number of units is chosen.

    Attributes:
        dense: the model.
        structure: its groups.
        narrowings: of the groups that may go.
        skipped: name -> (units, why they stay).
        layers: that may be re-fitted.
        feeds: one sample, for times and multiplications.
        shapes: of all values on it.
        guide: what attention says.
    """

    dense: Model
    structure: Structure
    narrowings: tuple[Narrowing, ...]
    skipped: dict[str, tuple[int, str]]
    layers: tuple[Layer, ...]
    feeds: tuple[Mapping[str, Any], ...]
    shapes: Shapes = field(repr=False)
    guide: Guide = NOTHING

    @property
    def owners(self) -> Owners:
        """Who owns which axis, of the groups that may go."""
        return Owners([item.group for item in self.narrowings], self.structure.layout)


@dataclass(frozen=True)
class Slimmed:
    """A smaller model and what was done.

    Attributes:
        model: the smaller model.
        removed: group name -> True for each unit that is gone.
        kept: group name -> why its units are still there, where removing them failed.
        predicted: how many times faster it is expected to be; None unless a speed was asked for.
    """

    model: Model
    removed: dict[str, NDArray[np.bool_]]
    kept: dict[str, str]
    predicted: float | None = None


def stages(recipe: Recipe) -> tuple[float, Recipe | None]:
    """Return the share that is removed, and the recipe of what is done to the rest; None for nothing."""
    structured = recipe.structured
    assert structured is not None
    if not structured.rest:
        return recipe.target_sparsity, None
    limit = recipe.pattern_limit
    share, zeros = shares(recipe.target_sparsity, recipe.structured_sparsity, limit if limit < 1 else None)
    rest = replace(recipe, pattern=structured.rest, sparsity=zeros, structured_sparsity=None, round_to=None)
    return share, rest


def prepare(dense: Model, data: CalibrationData, recipe: Recipe, progress: Progress) -> Ready:
    """Find what can go, in which order, and what that costs.

    Raises:
        ModelError: when nothing can go.
    """
    structured = recipe.structured
    assert structured is not None
    progress.stage("following the shapes")
    structure = find_structure(dense, data.batches[0], recipe.threads)
    layers, _ = find_layers(dense, include=recipe.include, exclude=recipe.exclude, min_size=1)
    allowed = {layer.name for layer in layers}
    every = {layer.name for layer in find_layers(dense, min_size=1)[0]}
    skipped = {item.name: (item.size, item.reason) for item in structure.pinned}
    groups = []
    for group in structure.groups:
        if group.kind not in structured.kinds:
            skipped[group.name] = (group.units, f"--pattern {recipe.pattern} does not name {group.kind}s")
        elif any(part.tensor in every - allowed for part in group.parts):
            skipped[group.name] = (group.units, "--include and --exclude leave its weights alone")
        else:
            groups.append(group)
    readers = find_readers(groups, layers)
    read = {reader.group for reader in readers}
    for group in groups:
        if group.name not in read:
            skipped[group.name] = (group.units, "no matrix reads it that could be re-fitted")
    groups = [group for group in groups if group.name in read]
    if not groups:
        reasons = dict.fromkeys(reason for _, reason in skipped.values())
        raise ModelError(
            f"{dense.name}: no units can be removed with --pattern {recipe.pattern}",
            "; ".join(list(reasons)[:3]) or "the model has no channels, neurons or heads that were found",
        )
    guide = make_guide(dense, layers, data, recipe)
    batch_masks = [row_mask(batch) for batch in data.batches]
    targets = {reader.layer.sites[0].input for reader in readers}
    outputs = recipe.allocation == "sensitivity"
    if outputs:
        targets |= set(dense.index.outputs)
    progress.stage("measuring units", len({reader.layer.name for reader in readers}))
    with ArrayStore(int(recipe.max_memory * 2**30)) as store, workers(recipe.threads):
        narrowings = measure(
            dense,
            groups,
            readers,
            Streams(dense, None, data.batches, targets, store, recipe.threads, data.batched),
            batch_masks,
            probe_batches(data, batch_masks),
            damping=recipe.damping,
            seed=recipe.seed,
            criterion=recipe.criterion,
            outputs=outputs,
            guide=guide,
            on_layer=lambda _: progress.advance(),
        )
    feeds = tuple(typical_feeds(data)[:1])
    shapes, _ = sample(dense, feeds[0], recipe.threads)
    return Ready(dense, structure, tuple(narrowings), skipped, layers, feeds, shapes, guide)


def slim(ready: Ready, data: CalibrationData, recipe: Recipe, share: float, progress: Progress) -> Slimmed:
    """Remove units until ``share`` is gone, or the speed that the recipe asks for is reached.

    Raises:
        ModelError: when not so much can go, or a removal fails its check.
    """
    choice, predicted = choose(ready, recipe, share, progress)
    removed = masks(ready.narrowings, choice.counts)
    dense, structure = ready.dense, ready.structure
    trial, held, kept = remove_checked(dense, structure, removed, data.batches[0], recipe.threads)
    del trial
    masked = compensated(dense, structure, held, ready.layers, data, recipe, progress, ready.guide)
    smaller = remove_units(masked, structure, held)
    why = check_removal(masked, smaller, data.batches[0], recipe.threads)
    if why is not None:
        raise ModelError(f"{dense.name}: the smaller model is not the masked one: {why}")
    return Slimmed(smaller, dict(held), kept, predicted)


def choose(ready: Ready, recipe: Recipe, share: float, progress: Progress) -> tuple[Choice, float | None]:
    """Return how many units of each group go, and the speed predicted when one is asked for."""
    groups = widths(ready.narrowings, recipe.round_to)
    pick = evenly if recipe.allocation == "uniform" else for_share
    if recipe.speedup is None:
        flops = recipe.budget == "flops"
        works = _flops(ready) if flops else weight_works(ready.dense, ready.owners)
        what = f"--sparsity {share:g} of the " + ("multiplications" if flops else "weights")
        return pick(groups, works, share, what), None
    progress.stage("timing narrower layers")
    works = times(ready, recipe)
    dense = session_of(ready.dense, threads=1)

    def speed(choice: Choice) -> float:
        smaller = remove_units(ready.dense, ready.structure, masks(ready.narrowings, choice.counts))
        session = session_of(smaller, threads=1, name="the smaller model")
        slow, fast = best_times([dense, session], ready.feeds, 1, seconds=_SECONDS)
        return slow / fast

    option = f"--target-speedup {recipe.target_speedup}"
    choice, predicted, _ = for_speed(
        lambda left: pick(groups, works, left, "of the time"), recipe.speedup, speed, option
    )
    return choice, predicted


def _flops(ready: Ready) -> list[Work]:
    return flop_works(ready.dense, ready.owners, ready.shapes)


def times(ready: Ready, recipe: Recipe) -> list[Work]:
    """Return where the time of the dense model goes."""
    return time_works(
        ready.dense,
        ready.owners,
        ready.shapes,
        ready.feeds,
        cache=recipe.cache,
        round_to=recipe.round_to or 8,
    )


def multiplications(model: Model, feeds: Sequence[Mapping[str, Any]], threads: int | None = None) -> float:
    """Return the multiplications of all products of a model on one sample."""
    from onnxprune.structure.groups import Layout

    shapes, _ = sample(model, feeds[0], threads)
    works = flop_works(model, Owners((), Layout({}, {}, {})), shapes)
    return total(works, {}, {})


def measured_speed(
    dense: Model, smaller: Model, feeds: Sequence[Mapping[str, Any]], threads: int | None
) -> dict[int, float]:
    """Return number of threads -> how many times faster the smaller model is, in stock ONNX Runtime."""
    found = {}
    for count in sorted({1, threads or runtime.cpu_count()}):
        sessions = [session_of(model, threads=count) for model in (dense, smaller)]
        slow, fast = best_times(sessions, feeds, count, seconds=_SECONDS)
        found[count] = slow / fast
    return found
