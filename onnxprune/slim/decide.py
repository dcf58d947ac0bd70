"""How many units of each group go, and which branches, for what a recipe asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.widths import Group as Widths
from onnxprune.allocation.widths import Work
from onnxprune.errors import ModelError
from onnxprune.inmemory import session_of
from onnxprune.kernels.stopwatch import best_times
from onnxprune.model import Model, label
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.slim.branches import Branch, bypass
from onnxprune.slim.choose import Choice, evenly, for_share, for_speed, masks, widths
from onnxprune.slim.gains import SECONDS
from onnxprune.slim.latency import time_works
from onnxprune.slim.ready import Ready
from onnxprune.slim.works import flop_works, weight_works
from onnxprune.structure.removal import remove_units


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
        removed, branches = gone(ready, choice)
        smaller = bypass(remove_units(ready.dense, ready.structure, removed), branches)
        session = session_of(smaller, threads=1, name="the smaller model")
        slow, fast = best_times([dense, session], ready.feeds, 1, seconds=SECONDS)
        return slow / fast

    option = f"--target-speedup {recipe.target_speedup}"
    choice, predicted, _ = for_speed(
        lambda left: pick(groups, works, left, "of the time"), recipe.speedup, speed, option
    )
    return choice, predicted


def gone(ready: Ready, choice: Choice) -> tuple[dict[str, NDArray[np.bool_]], list[Branch]]:
    """Return what the choice removes: units, without those of branches that go as a whole."""
    branches = [branch for branch, _ in ready.branches if choice.counts.get(branch.name)]
    inside = inside_of(ready.dense, branches)
    removed = masks(ready.narrowings, choice.counts)
    whole = {item.group.name for item in ready.narrowings if inside.issuperset(item.group.nodes)}
    return {name: gone for name, gone in removed.items() if name not in whole}, branches


def inside_of(dense: Model, branches: Sequence[Branch]) -> set[str]:
    """Return the labels of the branches' own nodes."""
    return {label(dense.graph.node[k]) for branch in branches for k in branch.nodes}


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
