"""What the report says of structured pruning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from onnxprune.model import Model, label
from onnxprune.recipe import Recipe
from onnxprune.slim.gains import measured_speed, multiplications
from onnxprune.slim.ready import Ready
from onnxprune.slim.stage import Slimmed


def summary(rounds: Sequence[tuple[Ready, Slimmed]], final: Model, recipe: Recipe) -> dict[str, Any]:
    """Return groups, parameters, multiplications and speed before and after, as plain values.

    Args:
        rounds: what was known before each round, and what it removed.
        final: the smaller model with plain weights, as it will be written.
        recipe: of the run.
    """
    groups: dict[str, dict[str, Any]] = {}
    for ready, slimmed in rounds:
        nodes = (k for branch, _ in ready.branches if branch.name in slimmed.branches for k in branch.nodes)
        inside = {label(ready.dense.graph.node[k]) for k in nodes}
        for item in ready.narrowings:
            if item.group.nodes and inside.issuperset(item.group.nodes):  # its damage is the branch's
                _add(groups, item.group.name, item.group.kind, item.group.units, item.group.units, 0.0, "")
                continue
            gone = slimmed.removed.get(item.group.name)
            count = 0 if gone is None else int(gone.sum())
            damage = float(item.damage[min(count, len(item.damage) - 1)])
            note = slimmed.kept.get(item.group.name, "")
            _add(groups, item.group.name, item.group.kind, item.group.units, count, damage, note)
        for branch, effect in ready.branches:
            out = int(branch.name in slimmed.branches)
            _add(groups, branch.name, "layer", 1, out, effect * out, "")
    ready = rounds[0][0]
    predicted = [slimmed.predicted for _, slimmed in rounds if slimmed.predicted is not None]
    return {
        "kinds": recipe.structured.kinds if recipe.structured is not None else (),
        "groups": list(groups.values()),
        "pinned": [{"name": item.name, "units": item.size, "reason": item.reason} for item in ready.skipped],
        "parameters": [parameters(ready.dense), parameters(final)],
        "multiplications": [multiplications(model, ready.feeds) for model in (ready.dense, final)],
        "predicted": math.prod(predicted) if predicted else None,
        "speed": [
            {"threads": threads, "ratio": ratio}
            for threads, ratio in measured_speed(ready.dense, final, ready.feeds, recipe.threads).items()
        ],
    }


def _add(
    groups: dict[str, dict[str, Any]], name: str, kind: str, units: int, gone: int, damage: float, note: str
) -> None:
    """Add what one round took from a group to what the rounds before it took."""
    entry: dict[str, Any] = {"name": name, "kind": kind, "before": units, "after": units, "damage": 0.0}
    entry = groups.setdefault(name, entry)
    entry["after"], entry["damage"] = units - gone, entry["damage"] + damage
    entry["note"] = note


def parameters(model: Model) -> int:
    """Return the number of floating-point constants in the main graph, scalars left out."""
    return sum(
        math.prod(tensor.dims)
        for tensor in model.index.tensors.values()
        if tensor.data_type in (1, 10, 11, 16) and len(tensor.dims)
    )
