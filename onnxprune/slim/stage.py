"""Structured pruning as one stage: a smaller model from a dense one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import ModelError
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.recipe.smaller import stages as stages
from onnxprune.slim.branches import bypass, close, gated
from onnxprune.slim.choose import Choice
from onnxprune.slim.compensate import compensated
from onnxprune.slim.decide import choose, gone, inside_of
from onnxprune.slim.ready import Ready
from onnxprune.structure.check import check_removal, remove_checked
from onnxprune.structure.removal import remove_units

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
    return replace(recipe, target_speedup=f"{(1 - done * saved) / (1 - now * saved):.6g}x"), relative


def slim(ready: Ready, data: CalibrationData, recipe: Recipe, share: float, progress: Progress) -> Slimmed:
    """Remove units until ``share`` is gone, or the speed that the recipe asks for is reached.

    Raises:
        ModelError: when not so much can go, or the smaller model fails its check.
    """
    dense, structure, feeds = ready.dense, ready.structure, data.batches[0]
    kept: dict[str, str] = {}
    while True:
        choice, predicted = choose(ready, recipe, share, progress)
        wanted, branches = gone(ready, choice)
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
        inside = inside_of(dense, branches)
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
