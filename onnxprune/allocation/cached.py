"""Keep what was measured of a model's layers in the user's cache, so that the next run need not measure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import onnxprune
from onnxprune import digest
from onnxprune.allocation.sensitivity import Sensitivity
from onnxprune.calibration.data import CalibrationData
from onnxprune.layers import Layer
from onnxprune.machine import cache_dir
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.solvers.patterns import Pattern

CACHE_FORMAT = 6  # raise it when the same measurement gives other numbers


def cache_path(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, levels: tuple[float, ...]
) -> Path:
    """Return where the measurement belongs: its name tells model, data and settings."""
    state = hashlib.sha256(f"{onnxprune.__version__} {CACHE_FORMAT} {digest.of_model(model)}".encode())
    settings = (
        [layer.name for layer in layers],
        recipe.criterion,
        recipe.solver,
        (recipe.pattern, recipe.granularity, recipe.selection, recipe.alpha),
        recipe.allocation,
        recipe.damping,
        recipe.refit,
        recipe.attention,
        recipe.seed,
        levels,
    )
    state.update(repr(settings).encode())
    state.update(data.digest().encode())
    return cache_dir() / "sensitivity" / f"{state.hexdigest()[:32]}.json"


def read(
    path: Path, layers: Sequence[Layer], levels: tuple[float, ...], outputs: bool, others: Sequence[Pattern]
) -> Sensitivity | None:
    """Return what ``path`` holds of these layers at these levels; None when it is absent or damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf8"))
        output = {name: tuple(map(float, values)) for name, values in document["output"].items()}
        error = {name: tuple(map(float, values)) for name, values in document["error"].items()}
        more = {
            pattern: {
                name: tuple(map(float, values)) for name, values in document["others"][str(pattern)].items()
            }
            for pattern in others
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent or damaged: measure again
    costs = (error, output) if outputs else (error,)
    matrices = [layer for layer in layers if layer.kind != "embedding"]
    if any(len(table.get(layer.name, ())) != len(levels) for table in more.values() for layer in matrices):
        return None
    if any(len(table.get(layer.name, ())) != len(levels) for table in costs for layer in layers):
        return None
    return Sensitivity(output, error, levels, {}, more)


def write(path: Path, found: Sensitivity) -> None:
    """Write ``found``; a cache that cannot be written costs time next run, nothing else."""
    from onnxprune.io import atomic_write_text

    others = {str(pattern): errors for pattern, errors in found.others.items()}
    document = {"output": found.output, "error": found.error, "others": others}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(document), force=True)
    except (OSError, onnxprune.errors.OnnxPruneError):
        return
