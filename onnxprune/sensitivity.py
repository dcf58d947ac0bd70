"""What pruning each layer alone does, and the plan that follows: ``onnxprune sensitivity``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxprune.allocation import planfile
from onnxprune.allocation.share import share_out
from onnxprune.calibration.copies import with_copies
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.inputs import input_specs
from onnxprune.calibration.unpad import unpad
from onnxprune.errors import ModelError, UsageError
from onnxprune.inmemory import session_of_file
from onnxprune.io import atomic_write_text, load
from onnxprune.layers import Layer, find_layers
from onnxprune.layers.heads import heads
from onnxprune.model import Model
from onnxprune.opening import folded, read_data, recipe_with
from onnxprune.plan import Measured, measure_layers, method_of
from onnxprune.progress import NullProgress, Progress
from onnxprune.recipe import Recipe
from onnxprune.recipe.choices import CURVES
from onnxprune.report.curves import check_plot, draw
from onnxprune.report.report import to_json
from onnxprune.sequential import layer_pattern
from onnxprune.solvers.patterns import Pattern

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.95)


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        name: of the weight.
        kind: of the layer.
        weights: how many it has.
        output: divergence of the model's output at each level, this layer alone pruned (KL in nats for
            classes, else relative squared error; mean per row).
        error: relative squared error of the layer's own output at each level.
        sparsity: that the allocation gives it.
        pattern: of its own; None when it is that of all.
    """

    name: str
    kind: str
    weights: int
    output: tuple[float, ...]
    error: tuple[float, ...]
    sparsity: float
    pattern: str | None = None


@dataclass(frozen=True)
class SensitivityReport:
    """The answer of :func:`sensitivity`.

    Attributes:
        model: what was measured.
        data: the samples, in one line.
        synthetic: True when there were none, and made-up ones served.
        levels: sparsities of the curves.
        layers: in graph order.
        sparsity: of all layers together, by the plan.
        plan: what ``--plan`` reads.
    """

    model: str
    data: str
    synthetic: bool
    levels: tuple[float, ...]
    layers: tuple[LayerSensitivity, ...]
    sparsity: float
    plan: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data; it is a plan file too."""
        own = dataclasses.asdict(self)
        plan, layers = own.pop("plan"), own.pop("layers")
        entries = {
            item["name"]: {
                **plan["layers"][item["name"]],
                **{k: item[k] for k in ("kind", "weights", "output", "error")},
            }
            for item in layers
        }
        return {"schema_version": plan["schema_version"], **own, "layers": entries}


def sensitivity(
    model: str | Path | Model | onnx.ModelProto,
    output: str | Path | None = None,
    *,
    levels: tuple[float, ...] = LEVELS,
    plot: str | Path | None = None,
    recipe: Recipe | None = None,
    data: Any = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> SensitivityReport:
    """Prune each layer alone at some sparsities, see what it does, and share the sparsity out.

    Args:
        model: a path, or a loaded model (left as it is).
        output: where to write the plan, for ``--plan``.
        levels: sparsities to try, increasing, above 0 and below 1.
        plot: where to draw the curves: a PNG or SVG file; needs matplotlib.
        recipe: all settings; ``options`` (fields of :class:`Recipe`) override it.
        data: calibration feeds, as in :func:`onnxprune.prune`.
        force: overwrite existing files.
        progress: told about the stages.
        **options: fields of :class:`Recipe`.

    Raises:
        OnnxPruneError: a subclass says what is wrong; nothing was written.
    """
    recipe, data = recipe_with(recipe, options, data)
    _check(levels, recipe)
    for path in (output, plot):
        if path is not None and not force and os.path.lexists(path):
            raise UsageError(f"{path} exists already", "--force overwrites it")
    if plot is not None:
        check_plot(Path(plot))
    progress = progress or NullProgress()
    progress.stage("reading")
    dense = model if isinstance(model, Model) else load(model, allow_external=recipe.allow_external)
    dense = folded(dense, recipe)
    layers, _ = find_layers(dense, include=recipe.include, exclude=recipe.exclude, min_size=recipe.min_size)
    if not layers:
        raise ModelError(f"{dense.name}: nothing to prune", "onnxprune inspect says why")
    calibration, _ = read_data(dense, recipe, data)
    calibration = unpad(calibration, input_specs(dense), session_of_file(dense, threads=recipe.threads))
    calibration = with_copies(calibration, recipe.augment, recipe.seed)
    measured = measure_layers(dense, layers, calibration, recipe, progress, levels=levels)
    report = _report(dense, layers, calibration, measured, recipe)
    if plot is not None:
        draw(report, Path(plot), force=force)
    if output is not None:
        atomic_write_text(Path(output), to_json(report.to_dict()), force=force)
    return report


def _report(
    dense: Model, layers: Sequence[Layer], calibration: CalibrationData, measured: Measured, recipe: Recipe
) -> SensitivityReport:
    """Share the sparsity out by what was measured, and put both into a report."""
    plan = share_out(dense, layers, calibration, recipe, measured)
    patterns = plan.patterns or _own_patterns(dense, layers, recipe)
    found = measured.sensitivity
    assert found is not None  # the allocation is one that measures
    return SensitivityReport(
        str(dense.path or dense.name),
        calibration.source,
        calibration.synthetic,
        found.levels,
        tuple(
            LayerSensitivity(
                layer.name,
                layer.kind,
                layer.size,
                found.output.get(layer.name, ()),
                found.error[layer.name],
                plan.zeros[layer.name] / layer.size,
                str(patterns[layer.name]) if layer.name in patterns else None,
            )
            for layer in layers
        ),
        sum(plan.zeros.values()) / sum(layer.size for layer in layers),
        planfile.document(layers, plan.zeros, patterns),
    )


def _own_patterns(dense: Model, layers: Sequence[Layer], recipe: Recipe) -> dict[str, Pattern]:
    """Return the recipe's pattern by layer, so that a plan repeats it; rows are a matter of granularity."""
    method = method_of(recipe, last=heads(dense, layers))
    patterns = {layer.name: layer_pattern(layer, method) for layer in layers}
    return {name: found for name, found in patterns.items() if found.kind in ("nm", "block")}


def _check(levels: tuple[float, ...], recipe: Recipe) -> None:
    if not levels or list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] < 1:
        shown = ",".join(f"{level:g}" for level in levels)
        raise UsageError(
            f"--levels is {shown!r}, wanted increasing shares between 0 and 1, such as 0.5,0.7,0.9"
        )
    if recipe.allocation not in CURVES:
        raise UsageError(
            f"--allocation {recipe.allocation} measures no sensitivities",
            f"--allocation {' or '.join(CURVES)}",
        )
    if recipe.structured is not None:
        raise UsageError(
            f"a plan says how many weights are zero, --pattern {recipe.pattern} removes whole units",
            "onnxprune MODEL --dry-run with that pattern shows what each group would lose",
        )
    if recipe.plan is not None:
        raise UsageError("--plan is what this command writes", "leave --plan out; -o FILE says where")
    if recipe.threshold is not None or recipe.searches:
        asked = "--threshold" if recipe.threshold is not None else "--max-drop or --min-agreement"
        raise UsageError(f"{asked} is for pruning; a plan is made for a sparsity", f"leave {asked} out")
