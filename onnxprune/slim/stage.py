"""Structured pruning as one stage: a smaller model from a dense one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import runtime
from onnxprune.allocation.widths import Group as Widths
from onnxprune.allocation.widths import Work, total
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import ModelError
from onnxprune.inmemory import session_of
from onnxprune.kernels.stopwatch import best_times
from onnxprune.layers import find_layers
from onnxprune.model import Model, label
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.recipe.smaller import stages as stages
from onnxprune.slim.branches import Branch, bypass, close, gated
from onnxprune.slim.choose import Choice, evenly, for_share, for_speed, masks, widths
from onnxprune.slim.compensate import compensated
from onnxprune.slim.latency import time_works
from onnxprune.slim.ready import Ready
from onnxprune.slim.works import Owners, flop_works, weight_works
from onnxprune.structure.check import check_removal, remove_checked
from onnxprune.structure.groups import Layout
from onnxprune.structure.removal import remove_units
from onnxprune.structure.sample import sample

_SECONDS = 2.0  # for the turns of two models
_SHORT, _BEYOND = 0.005, 0.05  # by how much what goes may miss the share that was asked for


@dataclass(frozen=True)
class Slimmed:
    """A smaller model and what was done.

    Attributes:
        model: the smaller model.
        removed: group name -> True for each unit that is gone.
        branches: names of the residual branches that are gone.
        kept: group name -> why its units are still there, where removing them failed.
        predicted: how many times faster it is expected to be; None unless a speed was asked for.
        note: where that is not what was asked for.
    """

    model: Model
    removed: dict[str, NDArray[np.bool_]]
    branches: tuple[str, ...]
    kept: dict[str, str]
    predicted: float | None = None
    note: str = ""


def part_of(recipe: Recipe, share: float, number: int) -> tuple[Recipe, float]:
    """Return the recipe and the share of one of the recipe's rounds, relative to what the last one left.

    Source of the cubic schedule: Zhu & Gupta, "To prune, or not to prune" (2017).
    """
    done, now = (1 - (1 - k / recipe.rounds) ** 3 for k in (number - 1, number))
    relative = 1 - (1 - now * share) / (1 - done * share)
    if recipe.speedup is None:
        return recipe, relative
    saved = 1 - 1 / recipe.speedup
    return replace(recipe, target_speedup=f"{(1 - done * saved) / (1 - now * saved):.6f}x"), relative


def slim(ready: Ready, data: CalibrationData, recipe: Recipe, share: float, progress: Progress) -> Slimmed:
    """Remove units until ``share`` is gone, or the speed that the recipe asks for is reached.

    Raises:
        ModelError: when not so much can go, or the smaller model fails its check.
    """
    dense, structure, feeds = ready.dense, ready.structure, data.batches[0]
    kept: dict[str, str] = {}
    while True:
        choice, predicted = choose(ready, recipe, share, progress)
        wanted, branches = _gone(ready, choice)
        _, removed, failed = remove_checked(dense, structure, wanted, feeds, recipe.threads)
        if not failed:
            break
        kept |= failed
        ready = ready.without(failed)  # others have to make up for them
    model, gates = gated(dense, branches) if branches else (dense, {})
    closed = model.copy()
    close(closed, gates, gates)
    layers = ready.layers
    if branches:
        found, _ = find_layers(model, include=recipe.include, exclude=recipe.exclude, min_size=1)
        inside = _inside(dense, branches)
        layers = tuple(layer for layer in found if not inside.issuperset(layer.nodes))
    masked = compensated(
        model, closed, structure, removed, layers, data, recipe, progress, gates.values(), ready.guide
    )
    smaller = bypass(remove_units(_with_weights(dense, masked), structure, removed), branches)
    why = check_removal(masked, smaller, feeds, recipe.threads)
    if why is not None:
        raise ModelError(f"{dense.name}: the smaller model is not the masked one: {why}")
    return Slimmed(
        smaller, dict(removed), tuple(b.name for b in branches), kept, predicted, note(recipe, share, choice)
    )


def note(recipe: Recipe, share: float, choice: Choice) -> str:
    """Say where what goes is not the share that was asked for; empty where it is, or a speed was."""
    gone = 1 - choice.amount
    if recipe.speedup is not None or share - _SHORT <= gone <= share + _BEYOND:
        return ""
    what = "multiplications" if recipe.budget == "flops" else "weights"
    why = "no more can go" if gone < share else "units come in steps; --round-to makes them smaller"
    return f"{gone:.1%} of the {what} went, {share:.1%} was asked for: {why}"


def _with_weights(dense: Model, source: Model) -> Model:
    """Return a copy of the model with the values of all weights of the same name."""
    result = dense.copy()
    for name in dense.index.tensors:
        array = source.array(name)
        if array.dtype.kind == "f" and not np.array_equal(array, dense.array(name)):
            result.set_array(name, array)
    return result


def _gone(ready: Ready, choice: Choice) -> tuple[dict[str, NDArray[np.bool_]], list[Branch]]:
    """Return what the choice removes: units, without those of branches that go as a whole."""
    branches = [branch for branch, _ in ready.branches if choice.counts.get(branch.name)]
    inside = _inside(ready.dense, branches)
    removed = masks(ready.narrowings, choice.counts)
    whole = {item.group.name for item in ready.narrowings if inside.issuperset(item.group.nodes)}
    return {name: gone for name, gone in removed.items() if name not in whole}, branches


def _inside(dense: Model, branches: Sequence[Branch]) -> set[str]:
    return {label(dense.graph.node[k]) for branch in branches for k in branch.nodes}


def choose(ready: Ready, recipe: Recipe, share: float, progress: Progress) -> tuple[Choice, float | None]:
    """Return how many units of each group go, and the speed predicted when one is asked for.

    Raises:
        ModelError: when not so much can go.
    """
    try:
        return _chosen(ready, recipe, share, progress)
    except ModelError as error:
        if not ready.failed:
            raise
        raise ModelError(str(error), f"{error.hint}; {stay(ready.failed)}") from error


def stay(failed: Mapping[str, str], most: int = 3) -> str:
    """Say why groups stay, of so many at most."""
    first = [f"{name} stays, since removing its units fails: {why}" for name, why in [*failed.items()][:most]]
    return "; ".join([*first, *([f"and {len(failed) - most} more"] if len(failed) > most else [])])


def _chosen(ready: Ready, recipe: Recipe, share: float, progress: Progress) -> tuple[Choice, float | None]:
    groups = widths(ready.narrowings, recipe.round_to)
    groups |= {branch.name: Widths(1, (0, 1), (0.0, effect)) for branch, effect in ready.branches}
    pick = evenly if recipe.allocation == "uniform" else for_share
    if recipe.speedup is None:
        flops = recipe.budget == "flops"
        works = flop_works(ready.dense, ready.owners, ready.shapes) if flops else _weights(ready)
        what = f"--sparsity {share:g} of the " + ("multiplications" if flops else "weights")
        return pick(groups, works, share, what), None
    progress.stage("timing narrower layers")
    works = times(ready, recipe)
    dense = session_of(ready.dense, threads=1)

    def speed(choice: Choice) -> float:
        removed, branches = _gone(ready, choice)
        smaller = bypass(remove_units(ready.dense, ready.structure, removed), branches)
        session = session_of(smaller, threads=1, name="the smaller model")
        slow, fast = best_times([dense, session], ready.feeds, 1, seconds=_SECONDS)
        return slow / fast

    option = f"--target-speedup {recipe.target_speedup}"
    choice, predicted, _ = for_speed(
        lambda left: pick(groups, works, left, "of the time"), recipe.speedup, speed, option
    )
    return choice, predicted


def _weights(ready: Ready) -> list[Work]:
    """Return the elements of what can shrink; what fails to was counted on when a share was asked for."""
    tensors = {part.tensor for name in ready.failed for part in ready.structure.group(name).parts}
    sizes = [ready.dense.index.tensors[name].dims for name in tensors - ready.owners.tensors(ready.dense)]
    return [*weight_works(ready.dense, ready.owners), *(Work(math.prod(dims)) for dims in sizes)]


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
