"""Put the report of a run together from what its stages returned."""

from __future__ import annotations

import dataclasses
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.attention.guide import Guide
from onnxprune.calibration.data import CalibrationData
from onnxprune.clock import Clock
from onnxprune.evaluate import verdict
from onnxprune.files.tensors import estimated_bytes
from onnxprune.io import file_digest, total_bytes
from onnxprune.kernels.decision import Decision, Selection
from onnxprune.layers import Layer, Skip
from onnxprune.machine import environment
from onnxprune.model import Model
from onnxprune.plan import Plan
from onnxprune.pruned import Pruned
from onnxprune.recipe import Recipe
from onnxprune.report import units
from onnxprune.report.report import LayerReport, Report, SkippedWeight, Speed, Timing
from onnxprune.sequential import Solved
from onnxprune.storage.report import PackReport

if TYPE_CHECKING:
    from onnxprune.search.trials import Search


@dataclass
class Outcome:
    """What a run found and did, stage by stage.

    Attributes:
        dense: the model as it came.
        recipe: the settings.
        layers: what was pruned, in graph order.
        skips: what was left alone.
        calibration: the samples that pruning was given.
        enlarged: these and changed copies of them, by which layers are measured and weights fitted.
        target: where the pruned model goes, None in a dry run.
        plan: zeros per layer.
        solved: what happened to each layer.
        stored: how each weight is stored, None when all are plain.
        selection: which nodes have a kernel, None when none were looked for.
        finetuning: what training did, for the report; None without.
        agreements: of the written model with the dense one, per output.
        file_bytes: of the written model with its external data.
        data_files: what was written beside it: external data.
        before: the user's measure of the dense model.
        after: the same of the written one.
        search: what a search tried, None without one.
        structured: what was removed as a whole, for the report; None without.
        notes: warnings of the stages.
    """

    dense: Model
    recipe: Recipe
    layers: tuple[Layer, ...]
    skips: tuple[Skip, ...]
    calibration: CalibrationData
    enlarged: CalibrationData
    target: Path | None
    plan: Plan | None = None
    solved: tuple[Solved, ...] = ()
    stored: PackReport | None = None
    selection: Selection | None = None
    finetuning: dict[str, Any] | None = None
    agreements: tuple[Any, ...] = ()
    file_bytes: int = 0
    data_files: list[Path] = field(default_factory=list)
    before: float | None = None
    after: float | None = None
    search: Search | None = None
    structured: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def take(self, pruned: Pruned) -> None:
        """Note what was done to the layers of the model that is to be written."""
        self.layers, self.skips = pruned.layers, pruned.skips
        self.plan, self.solved = pruned.plan, pruned.solved

    @property
    def solved_by_layer(self) -> list[Solved]:
        """What happened to each of ``layers``, in their order."""
        found = {item.name: item for item in self.solved}
        return [found[layer.name] for layer in self.layers]


def make_report(outcome: Outcome) -> Report:
    """Return the report of a finished run."""
    dense, recipe, data = outcome.dense, outcome.recipe, outcome.enlarged
    selection = outcome.selection or Selection({}, method="")
    entries = tuple(
        _layer_report(layer, item, outcome)
        for layer, item in zip(outcome.layers, outcome.solved_by_layer, strict=True)
    )
    weights, zeros = sum(e.weights for e in entries), sum(e.zeros for e in entries)
    judgement = verdict(outcome.agreements)
    return Report(
        model=str(dense.path or dense.name),
        output=str(outcome.target) if outcome.target else None,
        data_files=tuple(map(str, outcome.data_files)),
        model_digest=f"sha256:{file_digest(dense.path, allow_external=True)}" if dense.path else "",
        recipe=recipe.to_dict(),
        data=data.source,
        synthetic=data.synthetic,
        file_bytes_before=total_bytes(dense.path, allow_external=True)
        if dense.path
        else estimated_bytes(dense.proto),
        file_bytes_after=outcome.file_bytes,
        weights=weights,
        zeros=zeros,
        sparsity=zeros / max(weights, 1),  # without layers, as when all are excluded, there is none
        layers=entries,
        skipped=tuple(SkippedWeight(s.name, s.node, s.size, s.reason) for s in outcome.skips),
        agreements=tuple(dataclasses.asdict(item) for item in outcome.agreements),
        verdict=judgement.level,
        verdict_text=judgement.sentence,
        metric=recipe.eval or recipe.metric or "",
        metric_before=outcome.before,
        metric_after=outcome.after,
        finetuning=outcome.finetuning,
        search=outcome.search.report() if outcome.search is not None else None,
        structured=outcome.structured,
        attention=tuple(outcome.plan.guide.table()) if outcome.plan is not None else (),
        warnings=_warnings(outcome, zeros / max(weights, 1)),
        kernels=selection.method,
        kernels_note=selection.note,
        speed=tuple(Speed(threads, ratio) for threads, ratio in _speeds(outcome, selection).items()),
        timings=tuple(Timing(*item) for item in outcome.clock.timings),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        environment=environment(),
    )


def _speeds(outcome: Outcome, selection: Selection) -> dict[int, float]:
    """Return threads -> how many times faster than dense; what smaller shapes gain is part of it."""
    shapes = {item["threads"]: item["ratio"] for item in (outcome.structured or {}).get("speed", ())}
    return {threads: ratio * shapes.get(threads, 1.0) for threads, ratio in selection.speed.items()}


def _warnings(outcome: Outcome, sparsity: float) -> tuple[str, ...]:
    recipe, found = outcome.recipe, []
    if outcome.calibration.synthetic:
        found.append(
            "NO CALIBRATION DATA: inputs were made up, so the agreement and the accuracy mean little."
        )
    if outcome.search is not None:
        found += outcome.search.notes
    elif recipe.asks_for_weights and abs(sparsity - recipe.target_sparsity) > 0.005:
        found.append(
            f"sparsity is {sparsity:.1%}, {recipe.target_sparsity:.1%} was wanted: "
            f"pattern {recipe.structure} or the layers' limits allow no more"
        )
    if recipe.size_limit is not None and outcome.file_bytes > recipe.size_limit:
        found.append(
            f"the file has {outcome.file_bytes:,} bytes, {recipe.target_size} were asked for: the zeros lie "
            "where they take more room than in the trial; ask for a little less"
        )
    found += [*outcome.notes, *_speed_warnings(outcome)]
    if outcome.plan is not None and recipe.attention != ("off",):
        found += _attention_warnings(outcome.plan.guide, recipe)
    tuned = outcome.finetuning
    if tuned is not None and tuned["best"] == 0:
        found.append(
            "fine-tuning did not help: the held-out loss is likely higher than before, so the pruned "
            "weights were kept; try a lower --lr, or more --samples"
        )
    if tuned is not None and tuned["skipped"]:
        found.append(
            f"{tuned['skipped']} of {tuned['steps']} training steps had no finite gradient and did nothing"
        )
    if tuned is not None and tuned["start"]:
        found.append(
            f"only what lies behind {tuned['start']!r} was fine-tuned: torch cannot run what is before"
        )
    if tuned is not None and tuned.get("shared"):
        found.append(
            f"{tuned['shared']} weights were not fine-tuned: several blocks use them, and --scope block "
            "trains one after the other"
        )
    raised = [item.name for item in outcome.solved if item.damping > recipe.damping]
    if raised:
        found.append(f"damping was raised for {', '.join(raised)}: their inputs vary too little")
    return tuple(found)


def _speed_warnings(outcome: Outcome) -> list[str]:
    """Say where the speed that was asked for is not the one that was measured."""
    wanted, selection = outcome.recipe.speedup, outcome.selection
    if wanted is not None and outcome.structured is not None:
        return _structured_speed(outcome.structured, wanted)
    if wanted is None or selection is None:
        return []
    if not selection.speed:
        return [f"{wanted:g} times faster is a prediction: nothing was measured here ({selection.note})"]
    threads = min(selection.speed)
    if selection.speed[threads] >= wanted:
        return []
    return [
        f"{selection.speed[threads]:.2f} times faster as measured with {units.plural(threads, 'thread')}, "
        f"{wanted:g} was asked for and predicted; ask for more, or --pattern auto"
    ]


def _structured_speed(found: dict[str, Any], wanted: float) -> list[str]:
    ratio = found["speed"][0]["ratio"]
    if ratio > 1.1 * wanted:
        return [
            f"{ratio:.2f} times faster as measured with 1 thread, {wanted:g} was asked for: the model may "
            "have lost more than it must; ask for a little less, or run it again when nothing else runs here"
        ]
    if ratio >= 0.97 * wanted:
        return []
    return [
        f"{ratio:.2f} times faster as measured with 1 thread, {wanted:g} was asked for: widths come in "
        "steps; ask for a little more, or lower --round-to"
    ]


def _attention_warnings(guide: Guide, recipe: Recipe) -> list[str]:
    found = [f"the attention of {name} could not be read: {reason}" for name, reason in guide.skipped.items()]
    if guide.empty:
        found.append(
            f"--attention {' '.join(recipe.attention)} changed nothing: no attention says anything of the "
            "layers; onnxprune inspect --attention lists what there is"
        )
    return found


def _layer_report(layer: Layer, item: Solved, outcome: Outcome) -> LayerReport:
    recipe, plan = outcome.recipe, outcome.plan
    entry = outcome.stored.by_name(layer.name) if outcome.stored is not None else None
    decisions = outcome.selection.decisions if outcome.selection is not None else {}
    decision = decisions.get(layer.name, Decision(layer.name))
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
        pattern=str(item.pattern),
        criterion=recipe.criterion if layer.kind != "embedding" else "magnitude",
        error=item.error,
        sensitivity=plan.sensitivity.get(layer.name) if plan is not None else None,
        stored=entry.form if entry is not None else "dense",
        dense_bytes=dense_bytes,
        stored_bytes=entry.stored_bytes if entry is not None else dense_bytes,
        note="; ".join(notes),
        kernel=decision.op,
        gain=decision.gain,
        kernel_note=decision.reason,
        dense_readers=decision.dense_readers,
    )
