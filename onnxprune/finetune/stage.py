"""The stage between pruning and writing: fine-tuning, if asked for. Only it needs torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxprune.calibration import augment
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import ResourceError
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.recipe.choices import LOSSES

if TYPE_CHECKING:
    from onnxprune.finetune.task import Task

_FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
STEPS, MINUTES = 3000, 10.0  # unless the recipe says otherwise: what comes first ends it
NO_LIMIT = 10**9
BATCH = 16  # samples that learn together unless --batch-size says otherwise


def follower() -> bool:
    """Whether torchrun started this process to help another one, which is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) > 0 and several_processes()


def several_processes() -> bool:
    """Whether torchrun started more than this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def require_torch() -> None:
    """Raise ResourceError when torch is missing: before the hours, not after."""
    if importlib.util.find_spec("torch") is None:
        raise ResourceError("--finetune needs torch, which is not installed", "pip install torch")


def check_options(recipe: Recipe) -> None:
    """Find out what is missing or wrong before the long work, not after it.

    Raises:
        ResourceError: when torch is missing.
        UsageError: when ``recipe.loss`` names no function.
        DataError: when its file fails.
    """
    require_torch()
    if recipe.loss not in LOSSES:
        _custom(recipe)


def check_labels(
    dense: Model, session: Any, data: CalibrationData, held_out: CalibrationData, recipe: Recipe
) -> Task | None:
    """Find out before the long work whether the labels fit an output, in batches of every shape.

    Nothing is done without ``recipe.labels``.

    Args:
        dense: the dense model.
        session: of it.
        data: samples to learn from.
        held_out: samples that choose the weights.
        recipe: of the run.

    Returns:
        What the labels will be compared with; None without labels, or when a function of the user's does it.

    Raises:
        DataError: when they fit none, or not in all batches.
        UsageError: when they do not go with ``recipe.augment``.
    """
    if recipe.labels is None:
        return None
    from onnxprune.answers import output_kinds
    from onnxprune.evaluate import run
    from onnxprune.finetune.task import find_task

    feeds = data.batches[0]
    augment.make(recipe.augment, {}, data.labels[0])
    if recipe.loss not in LOSSES:  # the function finds them among the inputs and does what it likes
        return None
    names = [item.name for item in session.get_outputs() if item.type in _FLOATS]
    values = dict(zip(names, run(session, feeds, names), strict=True))
    kinds = output_kinds(values, dense)
    task = find_task(recipe.labels, data, held_out, values, kinds)
    labels = data.labels + held_out.labels
    seen = set()  # one batch of each shape tells
    for feeds, own in zip(data.batches + held_out.batches, labels, strict=True):
        shapes = (own.shape, *(feeds[name].shape for name in sorted(feeds)))
        if shapes not in seen:
            seen.add(shapes)
            task.check(run(session, feeds, [task.output])[0].shape, own.shape)
    return task


def _custom(recipe: Recipe) -> Any:
    from onnxprune.userfunction import load_function

    return None if recipe.loss in LOSSES else load_function(recipe.loss, "--loss")


def tune(
    dense: Model,
    pruned: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    held_out: CalibrationData,
    recipe: Recipe,
    progress: Progress,
) -> tuple[Model, dict[str, Any]]:
    """Return the fine-tuned copy of ``pruned`` and what the report says of it.

    Raises:
        ModelError: see :func:`onnxprune.finetune.distill.finetune`.
        ResourceError: when torch is missing.
    """
    require_torch()
    from onnxprune.finetune.distill import Options, finetune
    from onnxprune.finetune.trained import Settings

    options = Options(
        settings=Settings(*limits(recipe), recipe.lr, seed=recipe.seed),
        batch=recipe.batch_size or BATCH,
        form=recipe.loss if recipe.loss in LOSSES else "auto",
        custom=_custom(recipe),
        labels=recipe.labels,
        augment=recipe.augment,
        scope=recipe.scope,
        threads=recipe.threads,
        max_memory=int(recipe.max_memory * 2**30),
        resume=recipe.cache,
    )
    judges = held_out if held_out is not data else None  # a single sample serves for both
    result, tuned = finetune(dense, pruned, layers, data, judges, options, progress)
    found = dataclasses.asdict(tuned.trained)
    found.update(
        features=tuned.features,
        start=tuned.start,
        weights=len(tuned.weights),
        difference=tuned.difference,
        shared=len(tuned.shared),
        labels=tuned.labels,
    )
    return result, found


def share_of(recipe: Recipe, rounds: int) -> Recipe:
    """Return the recipe of one of ``rounds`` rounds: an equal share of the steps and of the minutes."""
    steps, minutes = limits(recipe)
    return dataclasses.replace(
        recipe,
        schedule="oneshot",
        steps=max(1, steps // rounds),
        minutes=None if minutes is None else minutes / rounds,
    )


def limits(recipe: Recipe) -> tuple[int, float | None]:
    """Return the most steps and minutes of the training that the recipe asks for."""
    if recipe.steps is None and recipe.minutes is None:
        return STEPS, MINUTES
    return recipe.steps or NO_LIMIT, recipe.minutes


def merged(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the report says of several rounds: all work of all of them, and what the last one reached.

    Losses of earlier rounds are of models with fewer zeros: only the curve, whose steps go on, has them.
    """
    last = dict(rounds[-1])
    earlier = sum(found["steps"] for found in rounds[:-1])
    last["best"] = last["best"] + earlier if last["best"] else 0
    last["curve"], done = [], 0
    for found in rounds:
        last["curve"] += [(done + step, *losses) for step, *losses in found["curve"]]
        done += found["steps"]
    for name in ("steps", "skipped", "seconds"):
        last[name] = sum(found[name] for found in rounds)
    return last
