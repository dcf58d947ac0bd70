"""Fine-tune a model that is pruned already, towards the dense one it came from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.calibration.inputs import input_specs
from onnxprune.calibration.unpad import unpad
from onnxprune.clock import Clock
from onnxprune.errors import ModelError, UsageError
from onnxprune.evaluate import load_function
from onnxprune.finetune.stage import check_labels, check_options, tune
from onnxprune.inmemory import session_of, session_of_file
from onnxprune.interface import interface_differences
from onnxprune.io import load
from onnxprune.layers import Layer, Skip, find_layers
from onnxprune.measure import find_measure
from onnxprune.model import Model
from onnxprune.opening import doubts, read_data, recipe_with
from onnxprune.outcome import Outcome
from onnxprune.passes.unpack import unpack
from onnxprune.pipeline import write
from onnxprune.plan import Plan
from onnxprune.progress import NullProgress, Progress
from onnxprune.recipe import Recipe
from onnxprune.report.report import Report
from onnxprune.sequential import Solved
from onnxprune.targets import find_targets


def distill(
    model: str | Path | Model | onnx.ModelProto,
    teacher: str | Path | Model | onnx.ModelProto,
    output: str | Path | None = None,
    *,
    recipe: Recipe | None = None,
    data: Any = None,
    force: bool = False,
    report: str | Path | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    **options: Any,
) -> Report:
    """Train a pruned model towards the dense one and write it, its zeros where they were.

    Args:
        model: the pruned model, a path or a loaded one (left as it is), in any storage form. Its shapes
            may differ from the teacher's, as after structured pruning.
        teacher: the dense model; inputs and outputs as those of ``model``.
        output: where to write; default ``NAME.finetuned.onnx`` beside the input.
        recipe: all settings; ``options`` (fields of :class:`Recipe`) override it.
        data: as :func:`onnxprune.prune`.
        force: overwrite an existing output.
        report: where to write the JSON report; default beside the output.
        progress: told about the stages.
        dry_run: do everything but write.
        **options: fields of :class:`Recipe`.

    Raises:
        OnnxPruneError: a subclass says what is wrong, and the hint what to do; nothing was written.
    """
    recipe, data = recipe_with(recipe, {"finetune": True, **options}, data)
    _check_recipe(recipe)
    progress, clock = progress or NullProgress(), Clock()
    with clock.stage("read"):
        progress.stage("reading")
        student = (
            model.copy() if isinstance(model, Model) else load(model, allow_external=recipe.allow_external)
        )
        dense = teacher if isinstance(teacher, Model) else load(teacher, allow_external=recipe.allow_external)
        target, report_path = find_targets(
            student, output, report, recipe, dry_run, force, mark="finetuned", others=[dense.path]
        )
        unpack(student)
        _check_pair(student, dense)
        layers, skips = _find_layers(student, recipe)
        if recipe.eval:
            load_function(recipe.eval)  # what is wrong with it shows before the long work
        calibration, held_out = read_data(student, recipe, data)
        notes = doubts(calibration, held_out)
    solved, recipe = _as_pruned(student, layers, recipe)
    session = session_of_file(dense, threads=recipe.threads)
    calibration, held_out = (unpad(part, input_specs(dense), session) for part in (calibration, held_out))
    check_labels(dense, session, calibration, held_out, recipe)
    outcome = Outcome(
        student, recipe, layers, skips, calibration, calibration, target, clock=clock, notes=notes
    )
    outcome.solved = solved
    outcome.plan = Plan({item.name: item.zeros for item in outcome.solved}, {}, {})
    measure = find_measure(recipe, dense, session, held_out, held_out)
    if measure:
        with clock.stage("pruned model"):
            progress.stage("running the pruned model")
            before = session_of(student, threads=recipe.threads)
            outcome.before = measure(before, held_out)
    with clock.stage("fine-tune"):
        tuned, outcome.finetuning = tune(dense, student, layers, calibration, held_out, recipe, progress)
    return write(outcome, tuned, session, held_out, progress, force=force, report=report_path)


def _check_recipe(recipe: Recipe) -> None:
    """Raise UsageError for options of pruning, or of training that do not go together."""
    check_options(recipe)
    if recipe.searches:
        raise UsageError("a floor is for pruning, finetune does not prune", "onnxprune prune does both")
    if recipe.rounds > 1:
        raise UsageError(
            f"--schedule {recipe.schedule} prunes, finetune does not", "onnxprune prune does both"
        )


def _find_layers(student: Model, recipe: Recipe) -> tuple[tuple[Layer, ...], tuple[Skip, ...]]:
    """Return the layers to report: small ones, too, where they have zeros."""
    layers, skips = find_layers(student, include=recipe.include, exclude=recipe.exclude, min_size=1)
    layers = tuple(layer for layer in layers if layer.size >= recipe.min_size or _zeros(student, layer))
    return layers, skips


def _as_pruned(
    student: Model, layers: tuple[Layer, ...], recipe: Recipe
) -> tuple[tuple[Solved, ...], Recipe]:
    """Return what pruning would have returned, and the recipe with the sparsity that is there."""
    solved = tuple(Solved(layer.name, _zeros(student, layer), None, 0.0) for layer in layers)
    zeros, weights = sum(item.zeros for item in solved), sum(layer.size for layer in layers)
    if zeros < max(weights, 1):
        recipe = dataclasses.replace(recipe, sparsity=zeros / max(weights, 1))
    return solved, recipe


def _zeros(model: Model, layer: Layer) -> int:
    return layer.size - int(np.count_nonzero(model.array(layer.name)))


def _check_pair(student: Model, teacher: Model) -> None:
    """Raise ModelError unless the two take the same inputs and give the same outputs."""
    found = [
        text
        for text in interface_differences(teacher, student)
        if text.startswith(("input", "output", "the order"))
    ]
    if found:
        raise ModelError(
            f"{student.name} is no pruned form of {teacher.name}: {'; '.join(found[:3])}",
            "--teacher names the model that it was pruned from",
        )
