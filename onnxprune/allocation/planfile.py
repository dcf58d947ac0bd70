"""A plan as a file: the sparsity of each layer, and its pattern where it has one of its own.

JSON: ``{"schema_version": 1, "layers": {"NAME": {"sparsity": 0.7, "pattern": "block:4x1"}}}``, or only the
number for a layer; other keys are for people. Layers that it does not name stay dense.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.layers import Layer
from onnxprune.solvers.patterns import Pattern

SCHEMA_VERSION = 1
_WRITES = "onnxprune sensitivity MODEL -o FILE writes one"


def document(
    layers: Sequence[Layer], zeros: Mapping[str, int], patterns: Mapping[str, Pattern]
) -> dict[str, Any]:
    """Return the plan as it is written."""
    entries: dict[str, dict[str, Any]] = {}
    for layer in layers:
        entries[layer.name] = {"sparsity": zeros[layer.name] / layer.size}
        if layer.name in patterns:
            entries[layer.name]["pattern"] = str(patterns[layer.name])
    return {"schema_version": SCHEMA_VERSION, "layers": entries}


def read(
    path: str | Path, layers: Sequence[Layer], default: Pattern
) -> tuple[dict[str, int], dict[str, Pattern]]:
    """Return zeros by layer, and the patterns of layers that have one of their own.

    Args:
        path: of the file.
        layers: that may be pruned.
        default: pattern of the others.

    Raises:
        UsageError: when the file is no plan, or not one for these layers.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf8"))
    except OSError as error:
        raise UsageError(f"cannot read plan {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"cannot read plan {path}: it is no JSON ({error})", _WRITES) from error
    entries = found.get("layers") if isinstance(found, dict) else None
    if not isinstance(entries, dict):
        raise UsageError(f"{path} is no plan: it has no object 'layers'", _WRITES)
    if found.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema_version {found.get('schema_version')!r}, wanted {SCHEMA_VERSION}", _WRITES
        )
    entries = {name: {"sparsity": e} if isinstance(e, int | float) else e for name, e in entries.items()}
    known = {layer.name: layer for layer in layers}
    for name in entries:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            of = f", it is of {found['model']}" if isinstance(found.get("model"), str) else ""
            raise UsageError(
                f"{path}: the model has no prunable weight {name!r}{of}",
                f"did you mean {near[0]}?" if near else "onnxprune inspect lists them",
            )
    patterns = {
        name: _pattern(path, name, entry["pattern"])
        for name, entry in entries.items()
        if isinstance(entry, dict) and "pattern" in entry
    }
    zeros = {
        name: patterns.get(name, default).zeros(
            layer.view.matrix, _share(path, name, entries[name]) if name in entries else 0.0
        )
        for name, layer in known.items()
    }
    for name, count in zeros.items():
        if count == known[name].size:
            raise UsageError(f"{path}: {name!r} would lose all of its {count} weights", "lower its sparsity")
    return zeros, patterns


def _share(path: str | Path, name: str, entry: object) -> float:
    value = entry.get("sparsity") if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UsageError(f"{path}: the sparsity of {name!r} is {value!r}, wanted a share from 0 to below 1")
    return float(value)


def _pattern(path: str | Path, name: str, text: object) -> Pattern:
    try:
        found = Pattern.parse(str(text))
        if found.kind == "rows":
            raise UsageError(f"pattern {text} is for all layers", f"--granularity {text}")
        return found
    except UsageError as error:
        raise UsageError(f"{path}: {name!r}: {error}", error.hint) from error
