"""The main job: load, find layers, calibrate, allocate, solve, rewrite, verify, save, report."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import runtime
from onnxprune.atomic import staged
from onnxprune.calibration.collect import find_stages
from onnxprune.calibration.data import CalibrationData, from_iterable, load_data
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.errors import ModelError, UsageError
from onnxprune.evaluate import agreement, load_function, task_metric, verdict
from onnxprune.io import DATA_SUFFIX, atomic_write_text, file_digest, load, save, total_bytes
from onnxprune.layers import Layer, Skip, find_layers
from onnxprune.machine import environment
from onnxprune.model import Model
from onnxprune.passes.pack import PackReport, pack
from onnxprune.passes.sparse_initializer import to_sparse_initializers
from onnxprune.plan import Plan, make_plan, method_of
from onnxprune.progress import NullProgress, Progress
from onnxprune.recipe import Recipe
from onnxprune.report.report import LayerReport, Report, SkippedWeight, Timing, to_json
from onnxprune.sequential import Solved, prune_sequential
from onnxprune.solvers.patterns import Pattern
from onnxprune.tensors import estimated_bytes
from onnxprune.verify import Expected, verify_file

# Samples for the final comparison: on top of --samples when the source has them, else this share of them.
EXTRA_SAMPLES = 64
HELD_OUT = 1 / 16


class _Clock:
    """Times the stages of a run."""

    def __init__(self) -> None:
        self.timings: list[tuple[str, float, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.timings.append((name, time.perf_counter() - wall, time.process_time() - cpu))


def prune(
    model: str | Path | Model,
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
    recipe = dataclasses.replace(recipe or Recipe(), **_options(options))
    if isinstance(data, str | Path):
        recipe, data = dataclasses.replace(recipe, data=str(data)), None
    progress, clock = progress or NullProgress(), _Clock()
    with clock.stage("read"):
        progress.stage("reading")
        dense = model if isinstance(model, Model) else load(model, allow_external=recipe.allow_external)
        target, report_path = _targets(dense, output, report, recipe, dry_run, force)
        _refuse_packed(dense)
        layers, skips = find_layers(
            dense, include=recipe.include, exclude=recipe.exclude, min_size=recipe.min_size
        )
        if not layers:
            raise ModelError(f"{dense.name}: nothing to prune", _why_nothing(dense, skips))
        metric = load_function(recipe.eval) if recipe.eval else None
        calibration, held_out = _data(dense, recipe, data)
    with clock.stage("dense model"):
        progress.stage("running the dense model")
        dense_session = runtime.session(_source(dense), threads=recipe.threads, name=dense.name)
        before = task_metric(metric, dense_session) if metric else None
    with clock.stage("measure"):
        plan = make_plan(dense, layers, calibration, recipe, progress)
    with clock.stage("solve"):
        pruned, solved = solve(dense, layers, plan, calibration, recipe, progress)
        _check_finite(pruned, layers)
    with clock.stage("rewrite"):
        progress.stage("packing")
        final, stored = store(pruned, layers, solved, recipe)
    expected = Expected(
        dense,
        pruned,
        layers,
        {item.name: item.zeros for item in solved},
        Pattern.parse(recipe.pattern),
        recipe.format == "packed" and recipe.values == "fp16",
    )
    results: dict[str, Any] = {}

    def check(path: Path) -> None:
        progress.stage("verifying")
        with clock.stage("verify"):
            session = verify_file(path, expected, held_out, recipe.threads)
            results["agreements"] = agreement(dense_session, session, held_out.batches, dense)
            results["bytes"] = total_bytes(path)
        if metric:
            with clock.stage("task metric"):
                results["metric"] = task_metric(metric, session)

    if target is None:
        _check_without_writing(final, check)
    else:
        save(final, target, force=force, check=check)
    outcome = _report(
        dense, target, recipe, calibration, layers, skips, plan, solved, stored, results, before, clock
    )
    if report_path is not None:
        atomic_write_text(report_path, to_json(outcome.to_dict()), force=force)
    return outcome


def solve(
    dense: Model,
    layers: tuple[Layer, ...],
    plan: Plan,
    data: CalibrationData,
    recipe: Recipe,
    progress: Progress,
) -> tuple[Model, tuple[Solved, ...]]:
    """Return the pruned copy of the model (plain weights) and what happened to each layer."""
    pruned = dense.copy()
    sequential = recipe.solve == "sequential" and recipe.refit
    targets = {stage.value for stage in find_stages(dense, layers)}
    targets |= {layer.sites[0].residual for layer in layers if layer.sites[0].residual and sequential}
    masks = [row_mask(batch) for batch in data.batches]
    progress.stage("pruning", len(layers))
    with ArrayStore(int(recipe.max_memory * 2**30)) as held:
        streams = Streams(dense, pruned if sequential else None, data.batches, targets, held, recipe.threads)
        solved = prune_sequential(
            dense,
            pruned,
            layers,
            plan.zeros,
            streams,
            masks,
            method_of(recipe),
            seed=recipe.seed,
            tied=plan.tied,
            repair=recipe.refit,
            on_layer=lambda _: progress.advance(),
        )
    return pruned, solved


def store(
    pruned: Model, layers: tuple[Layer, ...], solved: tuple[Solved, ...], recipe: Recipe
) -> tuple[Model, PackReport | None]:
    """Return a copy of the pruned model in the recipe's storage format."""
    names = [layer.name for layer, item in zip(layers, _by_layer(layers, solved), strict=True) if item.zeros]
    final = pruned.copy()
    if recipe.format == "packed":
        return final, pack(final, names, values="fp16" if recipe.values == "fp16" else "same")
    if recipe.format == "sparse-initializer":
        return final, to_sparse_initializers(final, names)
    return final, None


def _options(options: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(Recipe)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(
            f"prune() got unknown options {', '.join(unknown)}", f"known: {', '.join(sorted(known))}"
        )
    values = {
        key: os.fspath(v)
        if isinstance(v, os.PathLike)
        else v.tolist()
        if isinstance(v, np.generic | np.ndarray)
        else v
        for key, v in options.items()
    }
    checked = Recipe.from_dict(values)  # a wrong type is an error here, not deep inside
    return {key: getattr(checked, key) for key in options}


def _source(model: Model) -> Any:
    """What a session is created from: the file when there is one, since models may exceed 2 GiB."""
    return model.path if model.path is not None and model.external else model.to_bytes()


def _targets(
    model: Model,
    output: str | Path | None,
    report: str | Path | None,
    recipe: Recipe,
    dry_run: bool,
    force: bool,
) -> tuple[Path | None, Path | None]:
    """Decide where to write, and refuse before the long work instead of after it."""
    if dry_run:
        return None, None
    if output is None:
        if model.path is None:
            raise UsageError("a model that came from memory needs an output path")
        name = model.path.stem if model.path.suffix.lower() == ".onnx" else model.path.name
        output = model.path.with_name(f"{name}.pruned.onnx")
    target = Path(output)
    report_path = Path(report) if report is not None else target.with_suffix(".json")
    if os.path.realpath(target) == os.path.realpath(report_path):
        raise UsageError(f"{target} cannot be both the model and its report", "name a .onnx file with -o")
    for path in (target, report_path):
        for source in (model.path, recipe.data):
            if source and os.path.isfile(path) and os.path.exists(source) and os.path.samefile(path, source):
                raise UsageError(f"{path} is the input, which is never changed", "choose another output")
        data = [path.name + DATA_SUFFIX] if path is target and model.external else []
        with staged(path, force=force, companions=data):
            pass  # what would stop the write (an existing file, a read-only folder) stops the run here
    return target, report_path


def _check_finite(pruned: Model, layers: tuple[Layer, ...]) -> None:
    for layer in layers:
        for name in (layer.name, layer.bias.name if layer.bias is not None else layer.name):
            if not np.isfinite(pruned.array(name).astype(np.float32)).all():
                raise ModelError(
                    f"pruning weight {layer.name!r} of node {layer.nodes[0]!r} gave NaN or infinite "
                    f"values in {name!r}",
                    f"raise --damping, check the data, or leave it alone with --exclude '{layer.name}'",
                )


def _refuse_packed(model: Model) -> None:
    if any(node.domain == "onnxprune" for node in model.graph.node):
        raise ModelError(
            f"{model.name} is packed by onnxprune already", "onnxprune export --format dense undoes it"
        )


def _why_nothing(model: Model, skips: tuple[Skip, ...]) -> str:
    if model.graph.sparse_initializer:
        return "its weights are sparse initializers: onnxprune export --format dense undoes it"
    reasons = list(dict.fromkeys(skip.reason for skip in skips))[:3]
    return f"left alone: {'; '.join(reasons)}" if reasons else "the model has no weight matrices"


def _data(model: Model, recipe: Recipe, data: Any) -> tuple[CalibrationData, CalibrationData]:
    """Return (calibration, held-out) samples: held-out ones come on top when the source has more."""
    wide = dataclasses.replace(recipe, samples=recipe.samples + EXTRA_SAMPLES)
    found = load_data(model, wide) if data is None else from_iterable(model, data, wide)
    spare = found.samples - recipe.samples
    share = spare / found.samples if spare > 0 else HELD_OUT
    rest, held_out = found.split(share, recipe.seed)
    return rest, held_out if held_out.batches else rest  # a single sample has to serve for both


def _check_without_writing(final: Model, check: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        save(final, Path(folder) / "model.onnx", check=check)


def _by_layer(layers: tuple[Layer, ...], solved: tuple[Solved, ...]) -> list[Solved]:
    found = {item.name: item for item in solved}
    return [found[layer.name] for layer in layers]


def _report(
    dense: Model,
    target: Path | None,
    recipe: Recipe,
    data: CalibrationData,
    layers: tuple[Layer, ...],
    skips: tuple[Skip, ...],
    plan: Plan,
    solved: tuple[Solved, ...],
    stored: PackReport | None,
    results: dict[str, Any],
    before: float | None,
    clock: _Clock,
) -> Report:
    entries = tuple(
        _layer_report(layer, item, plan, stored, recipe)
        for layer, item in zip(layers, _by_layer(layers, solved), strict=True)
    )
    weights, zeros = sum(e.weights for e in entries), sum(e.zeros for e in entries)
    judgement = verdict(results["agreements"])
    return Report(
        model=str(dense.path or dense.name),
        output=str(target) if target else None,
        model_digest=f"sha256:{file_digest(dense.path, allow_external=True)}" if dense.path else "",
        recipe=recipe.to_dict(),
        data=data.source,
        synthetic=data.synthetic,
        file_bytes_before=total_bytes(dense.path, allow_external=True)
        if dense.path
        else estimated_bytes(dense.proto),
        file_bytes_after=results["bytes"],
        weights=weights,
        zeros=zeros,
        sparsity=zeros / weights,
        layers=entries,
        skipped=tuple(SkippedWeight(s.name, s.node, s.size, s.reason) for s in skips),
        agreements=tuple(dataclasses.asdict(item) for item in results["agreements"]),
        verdict=judgement.level,
        verdict_text=judgement.sentence,
        metric=recipe.eval or "",
        metric_before=before,
        metric_after=results.get("metric"),
        warnings=_warnings(data, recipe, zeros / weights, solved),
        timings=tuple(Timing(*item) for item in clock.timings),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        environment=environment(),
    )


def _warnings(
    data: CalibrationData, recipe: Recipe, sparsity: float, solved: tuple[Solved, ...]
) -> tuple[str, ...]:
    found = []
    if data.synthetic:
        found.append(
            "NO CALIBRATION DATA: inputs were made up, so the agreement and the accuracy mean little."
        )
    if abs(sparsity - recipe.target_sparsity) > 0.005:
        found.append(
            f"sparsity is {sparsity:.1%}, {recipe.target_sparsity:.1%} was wanted: "
            f"pattern {recipe.pattern} or the layers' limits allow no more"
        )
    raised = [item.name for item in solved if item.damping > recipe.damping]
    if raised:
        found.append(f"damping was raised for {', '.join(raised)}: their inputs vary too little")
    return tuple(found)


def _layer_report(
    layer: Layer, item: Solved, plan: Plan, stored: PackReport | None, recipe: Recipe
) -> LayerReport:
    entry = stored.by_name(layer.name) if stored is not None else None
    dense_bytes = layer.size * layer.dtype.itemsize
    notes = [f"used by {len(layer.sites)} nodes"] if len(layer.sites) > 1 else []
    if item.refitted and layer.kind != "embedding":
        notes.append("kept dense, re-fitted")
    if item.damping > recipe.damping:
        notes.append(f"damping raised to {item.damping:g}")
    if entry is not None and entry.reason:
        notes.append(entry.reason)
    return LayerReport(
        name=layer.name,
        nodes=layer.nodes,
        kind=layer.kind,
        shape=layer.view.stored,
        weights=layer.size,
        zeros=item.zeros,
        sparsity=item.zeros / layer.size,
        pattern=recipe.pattern,
        criterion=recipe.criterion if layer.kind != "embedding" else "magnitude",
        error=item.error,
        sensitivity=plan.sensitivity.get(layer.name),
        stored=entry.form if entry is not None else "dense",
        dense_bytes=dense_bytes,
        stored_bytes=entry.stored_bytes if entry is not None else dense_bytes,
        note="; ".join(notes),
    )
