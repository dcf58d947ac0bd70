"""The main job: load, find layers, calibrate, allocate, solve, rewrite, verify, save, report."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.calibration.collect import find_stages
from onnxprune.calibration.copies import with_copies
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.inputs import input_specs
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.calibration.unpad import unpad
from onnxprune.clock import Clock
from onnxprune.errors import ModelError
from onnxprune.evaluate import agreement, load_function
from onnxprune.evidence import check_torch
from onnxprune.finetune.stage import (
    check_labels,
    check_options,
    merged,
    several_processes,
    share_of,
    tune,
)
from onnxprune.inmemory import session_of_file
from onnxprune.io import atomic_write_text, load, save, total_bytes
from onnxprune.kernels.decision import Selection
from onnxprune.kernels.device_select import store_for_cuda
from onnxprune.kernels.select import select
from onnxprune.layers import Layer, find_layers
from onnxprune.layers.heads import heads
from onnxprune.measure import find_measure
from onnxprune.model import Model
from onnxprune.opening import doubts, find_prunable, read_data, recipe_with, separated
from onnxprune.outcome import Outcome, make_report
from onnxprune.parallel import workers
from onnxprune.passes.pack import PackReport, pack
from onnxprune.passes.sparse_initializer import to_sparse_initializers
from onnxprune.plan import Plan, make_plan, method_of
from onnxprune.progress import NullProgress, Progress
from onnxprune.pruned import Pruned, as_it_is
from onnxprune.recipe import Recipe
from onnxprune.recipe.mixture import Mixture
from onnxprune.report.report import Report, to_json
from onnxprune.search.automatic import Automatic
from onnxprune.search.candidate import Units, Weights
from onnxprune.search.judge import Judge, split_held_out
from onnxprune.search.known import Known, key_of
from onnxprune.sequential import Solved, prune_sequential
from onnxprune.slim.ready import Ready, prepare
from onnxprune.slim.stage import Slimmed, part_of, slim, stages
from onnxprune.slim.summary import summary
from onnxprune.targets import find_targets
from onnxprune.verify import Expected, verify_file


def prune(
    model: str | Path | Model | onnx.ModelProto,
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
    """Prune a model and write it with its report.

    Args:
        model: a path, or a loaded model (left as it is).
        output: where to write; default ``NAME.pruned.onnx`` beside the input.
        recipe: all settings; ``options`` (fields of :class:`Recipe`) override it.
        data: calibration feeds: an iterable of dicts, an array for a model with one input, or anything
            that ``--data`` accepts. Default: ``recipe.data``.
        force: overwrite an existing output.
        report: where to write the JSON report; default beside the output.
        progress: told about the stages.
        dry_run: do everything but write.
        **options: fields of :class:`Recipe`.

    Raises:
        OnnxPruneError: a subclass says what is wrong, and the hint what to do; nothing was written.
    """
    recipe, data = recipe_with(recipe, options, data)
    if recipe.finetune:
        check_options(recipe)
    check_torch(recipe)
    progress, clock = progress or NullProgress(), Clock()
    with clock.stage("read"):
        progress.stage("reading")
        dense = model if isinstance(model, Model) else load(model, allow_external=recipe.allow_external)
        target, report_path = find_targets(dense, output, report, recipe, dry_run, force)
        original, dense = dense, separated(dense, recipe)
        layers, skips = find_prunable(dense, recipe)
        if recipe.eval:
            load_function(recipe.eval)  # what is wrong with it shows before the long work
        with ThreadPoolExecutor(1) as beside:
            making = beside.submit(session_of_file, original, threads=recipe.threads)
            calibration, held_out = read_data(dense, recipe, data)
            notes = doubts(calibration, held_out)
    with clock.stage("dense model"):
        progress.stage("running the dense model")
        dense_session = making.result()
        specs = input_specs(dense)
        calibration, held_out = (unpad(data, specs, dense_session) for data in (calibration, held_out))
        if recipe.finetune or Mixture.parse(recipe.criterion).gradients:
            check_labels(dense, dense_session, calibration, held_out, recipe)
        enlarged = with_copies(calibration, recipe.augment, recipe.seed)
        outcome = Outcome(
            dense, recipe, layers, skips, calibration, enlarged, target, clock=clock, notes=notes
        )
        selection = held_out
        if recipe.searches:
            selection, held_out = split_held_out(held_out, calibration, recipe.seed)
        measure = find_measure(recipe, dense, dense_session, selection, held_out)
        outcome.before = measure(dense_session, held_out) if measure else None
        final = Judge.make(recipe, dense, dense_session, held_out, measure, outcome.before)
    if recipe.searches:
        own = outcome.before if measure is not None and measure.own_data else None
        chooser = Judge.make(recipe, dense, dense_session, selection, measure, own)
        pruned = _found(outcome, (chooser, final), progress)
    elif recipe.structured is not None:
        pruned = _slimmed(outcome, held_out, progress)
    else:
        with clock.stage("measure"):
            outcome.plan = make_plan(dense, layers, enlarged, recipe, progress)
        pruned = _pruned(outcome, held_out, progress)
    return write(outcome, pruned, dense_session, held_out, progress, force=force, report=report_path)


def write(
    outcome: Outcome,
    pruned: Model,
    dense_session: Any,
    held_out: CalibrationData,
    progress: Progress,
    *,
    force: bool = False,
    report: Path | None = None,
) -> Report:
    """Store, verify and write a pruned model, then its report.

    Args:
        outcome: what the stages before found; completed here.
        pruned: the model with plain weights.
        dense_session: of the dense model.
        held_out: samples that the written model is compared with the dense one on.
        progress: told about the stages.
        force: overwrite an existing output.
        report: where to write the report.

    Raises:
        VerificationError: when what was written is not what was planned; nothing is left then.
    """
    recipe, clock = outcome.recipe, outcome.clock
    measure = find_measure(recipe, outcome.dense, dense_session, held_out, held_out)
    with clock.stage("rewrite"):
        progress.stage("packing")
        if recipe.target == "cuda":
            names = _with_zeros(outcome.layers, outcome.solved)
            final, outcome.stored, outcome.selection = store_for_cuda(pruned, names, recipe)
        else:
            final, outcome.stored = store(pruned, outcome.layers, outcome.solved, recipe)
    if recipe.target == "cpu":
        with clock.stage("kernels"):
            outcome.selection = choose_kernels(final, pruned, outcome.calibration, recipe, progress)
    expected = _expected(outcome, pruned)

    def check(path: Path) -> None:
        progress.stage("verifying")
        with clock.stage("verify"):
            session = verify_file(path, expected, held_out, recipe.threads)
            outcome.agreements = tuple(agreement(dense_session, session, held_out.batches, outcome.dense))
            outcome.file_bytes = total_bytes(path)
        if measure:
            with clock.stage("task metric"):
                outcome.after = measure(session, held_out)
        if outcome.search is not None:
            outcome.search.check(outcome.after, outcome.agreements)

    if outcome.target is None:
        _check_without_writing(final, check)
    else:
        _, *outcome.data_files = save(final, outcome.target, force=force, check=check)
    made = make_report(outcome)
    if report is not None:
        atomic_write_text(report, to_json(made.to_dict()), force=force)
    return made


def _pruned(outcome: Outcome, held_out: CalibrationData, progress: Progress) -> Model:
    """Return the pruned (and fine-tuned) model, in as many rounds as the recipe says.

    Source of the cubic schedule: Zhu & Gupta, "To prune, or not to prune" (2017).
    """
    recipe, clock, layers, plan = outcome.recipe, outcome.clock, outcome.layers, outcome.plan
    assert plan is not None
    model, rounds, tuned = outcome.dense, recipe.rounds, []
    for number in range(1, rounds + 1):
        share = 1 - (1 - number / rounds) ** 3
        zeros = plan.zeros
        if number < rounds:
            zeros = {name: round(share * count) for name, count in zeros.items()}
        with clock.stage("solve"):
            step = dataclasses.replace(plan, zeros=zeros)
            model, outcome.solved = solve(model, layers, step, outcome.enlarged, recipe, progress)
        if recipe.finetune:
            with clock.stage("fine-tune"):
                part = share_of(recipe, rounds)
                model, found = tune(
                    outcome.dense, model, layers, outcome.calibration, held_out, part, progress
                )
                tuned.append(found)
                outcome.finetuning = merged(tuned)
    return model


def _found(outcome: Outcome, judges: tuple[Judge, Judge], progress: Progress) -> Model:
    """Return the most compressed model that holds the floor."""
    recipe, dense, data = outcome.recipe, outcome.dense, outcome.enlarged

    def solved(plan: Plan, part: Recipe) -> tuple[Model, tuple[Solved, ...]]:
        return solve(dense, outcome.layers, plan, data, part, progress)

    known = Known(_search_key(outcome, judges))
    if recipe.structured is None:
        return Automatic(outcome, judges, Weights(outcome, solved, progress), known, progress).run().model
    made = Automatic(outcome, judges, Units(outcome, progress), known, progress).run()
    assert made.removal is not None
    with outcome.clock.stage("time"):
        progress.stage("timing the smaller model")
        outcome.structured = summary([made.removal], made.model, recipe)
    return made.model


def _search_key(outcome: Outcome, judges: tuple[Judge, Judge]) -> str | None:
    """Return what a search is known by in the user's cache; None when it is to be neither read nor kept."""
    recipe, (selection, final) = outcome.recipe, judges
    if not recipe.cache or several_processes():  # these have to try the same models at the same time
        return None
    metrics = (selection.floor.dense, outcome.before)
    return key_of(outcome.dense, recipe, (outcome.enlarged, selection.data, final.data), metrics)


def _slimmed(outcome: Outcome, held_out: CalibrationData, progress: Progress) -> Model:
    """Return the smaller (and then pruned, and fine-tuned) model."""
    recipe, clock, data = outcome.recipe, outcome.clock, outcome.enlarged
    share, rest = stages(recipe)
    model, tuned = outcome.dense, []
    rounds: list[tuple[Ready, Slimmed]] = []
    for number in range(1, recipe.rounds + 1):
        step, part = part_of(recipe, share, number)
        with clock.stage("measure"):
            ready = prepare(model, data, step, progress)
        with clock.stage("remove"):
            rounds.append((ready, slim(ready, data, step, part, progress)))
        if note := rounds[-1][1].note:
            outcome.notes.append(note if recipe.rounds == 1 else f"round {number}: {note}")
        smaller = rounds[-1][1].model
        pruned = _pruned_further(smaller, outcome, rest, progress) if rest else as_it_is(smaller, recipe)
        outcome.take(pruned)
        model = pruned.model
        if recipe.finetune:
            with clock.stage("fine-tune"):
                shared = share_of(recipe, recipe.rounds)
                model, found = tune(
                    outcome.dense, model, outcome.layers, outcome.calibration, held_out, shared, progress
                )
                tuned.append(found)
                outcome.finetuning = merged(tuned)
    with clock.stage("time"):
        progress.stage("timing the smaller model")
        outcome.structured = summary(rounds, model, recipe)
    return model


def _pruned_further(smaller: Model, outcome: Outcome, rest: Recipe, progress: Progress) -> Pruned:
    """Return the smaller model with the zeros that ``rest`` asks for."""
    layers, skips = find_layers(smaller, include=rest.include, exclude=rest.exclude, min_size=rest.min_size)
    with outcome.clock.stage("measure"):
        plan = make_plan(smaller, layers, outcome.enlarged, rest, progress)
    with outcome.clock.stage("solve"):
        model, solved = solve(smaller, layers, plan, outcome.enlarged, rest, progress)
    return Pruned(model, layers, skips, plan, solved)


def solve(
    dense: Model,
    layers: tuple[Layer, ...],
    plan: Plan,
    data: CalibrationData,
    recipe: Recipe,
    progress: Progress,
) -> tuple[Model, tuple[Solved, ...]]:
    """Return the pruned copy of the model (plain weights) and what happened to each layer.

    Raises:
        ModelError: when some of it is not finite.
    """
    pruned = dense.copy()
    sequential = recipe.solve == "sequential" and recipe.refit
    targets = {name for stage in find_stages(dense, layers) for name in stage.reads}
    targets |= {layer.sites[0].residual for layer in layers if layer.sites[0].residual and sequential}
    masks = [row_mask(batch) for batch in data.batches]
    progress.stage("pruning", len(layers))
    with ArrayStore(int(recipe.max_memory * 2**30)) as held, workers(recipe.threads):
        other = pruned if sequential else None
        streams = Streams(dense, other, data.batches, targets, held, recipe.threads, data.batched)
        solved = prune_sequential(
            dense,
            pruned,
            layers,
            plan.zeros,
            streams,
            masks,
            method_of(recipe, slopes=plan.slopes, last=heads(dense, layers)),
            seed=recipe.seed,
            patterns=plan.patterns,
            tied=plan.tied,
            repair=recipe.refit,
            guide=plan.guide,
            on_layer=lambda _: progress.advance(),
        )
    _check_finite(pruned, layers)
    return pruned, solved


def store(
    pruned: Model, layers: tuple[Layer, ...], solved: tuple[Solved, ...], recipe: Recipe
) -> tuple[Model, PackReport | None]:
    """Return a copy of the pruned model in the recipe's storage format."""
    names, final = _with_zeros(layers, solved), pruned.copy()
    if recipe.format == "packed":
        with workers(recipe.threads):
            return final, pack(final, names, values=recipe.values)
    if recipe.format == "sparse-initializer":
        return final, to_sparse_initializers(final, names)
    return final, None


def _with_zeros(layers: tuple[Layer, ...], solved: tuple[Solved, ...]) -> list[str]:
    zeros = {item.name: item.zeros for item in solved}
    return [layer.name for layer in layers if zeros[layer.name]]


def choose_kernels(
    final: Model, pruned: Model, data: CalibrationData, recipe: Recipe, progress: Progress
) -> Selection:
    """Put ops with a sparse kernel into ``final`` where they are faster; say what was decided."""
    return select(final, pruned, data, threads=recipe.threads, cache=recipe.cache, progress=progress)


def _expected(outcome: Outcome, pruned: Model) -> Expected:
    recipe = outcome.recipe
    return Expected(
        outcome.dense,
        pruned,
        outcome.layers,
        {item.name: item.zeros for item in outcome.solved},
        {item.name: item.pattern for item in outcome.solved},
        recipe.format == "packed" and (recipe.values == "fp16" or recipe.target == "cuda"),
    )


def _check_finite(pruned: Model, layers: tuple[Layer, ...]) -> None:
    for layer in layers:
        for name in (layer.name, layer.bias.name if layer.bias is not None else layer.name):
            if not np.isfinite(pruned.array(name).astype(np.float32)).all():
                raise ModelError(
                    f"pruning weight {layer.name!r} of node {layer.nodes[0]!r} gave NaN or infinite "
                    f"values in {name!r}",
                    f"raise --damping, check the data, or leave it alone with --exclude '{layer.name}'",
                )


def _check_without_writing(final: Model, check: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        save(final, Path(folder) / "model.onnx", check=check)
