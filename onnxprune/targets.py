"""Where a run writes: decided, and refused, before the long work instead of after it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.files.atomic import staged
from onnxprune.finetune.stage import follower
from onnxprune.io import DATA_SUFFIX
from onnxprune.kernels.devicetable import find_table
from onnxprune.model import Model
from onnxprune.recipe import Recipe


def find_targets(
    model: Model,
    output: str | Path | None,
    report: str | Path | None,
    recipe: Recipe,
    dry_run: bool,
    force: bool,
    *,
    mark: str = "pruned",
    others: Sequence[Path | None] = (),
) -> tuple[Path | None, Path | None]:
    """Return the paths of the pruned model and its report, both None when nothing is to be written.

    Without ``output`` the model goes beside the input, as ``NAME.mark.onnx``. ``others`` are inputs too. A
    dry run is refused what the real one would be; only a model from memory needs no name for it.

    Raises:
        UsageError: when one of them exists (without ``force``), is the input, or cannot be named; when the
            table of measurements for CUDA cannot be read, or there are several.
        ResourceError: when one of them cannot be written, or there is no such table.
    """
    if recipe.target == "cuda":
        find_table(recipe.cuda_table)
    if follower() or (dry_run and output is None and model.path is None):
        return None, None
    if output is None:
        if model.path is None:
            raise UsageError("a model that came from memory needs an output path")
        name = model.path.stem if model.path.suffix.lower() == ".onnx" else model.path.name
        output = model.path.with_name(f"{name}.{mark}.onnx")
    if "-" in (str(output), str(report)):
        raise UsageError(
            "models and reports are not written to stdout", "name files; --json prints the report"
        )
    target = Path(output)
    report_path = Path(report) if report is not None else target.with_suffix(".json")
    if os.path.realpath(target) == os.path.realpath(report_path):
        raise UsageError(f"{target} cannot be both the model and its report", "name a .onnx file with -o")
    for path in (target, report_path):
        for source in (model.path, recipe.data, *others):
            if source and os.path.isfile(path) and os.path.exists(source) and os.path.samefile(path, source):
                raise UsageError(f"{path} is the input, which is never changed", "choose another output")
        data = [path.name + DATA_SUFFIX] if path is target and model.external else []
        with staged(path, force=force, companions=data):
            pass  # what would stop the write (an existing file, a read-only folder) stops the run here
    return (None, None) if dry_run else (target, report_path)
