"""What the report says of structured pruning."""

from __future__ import annotations

import math
from typing import Any

from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.slim.ready import Ready
from onnxprune.slim.stage import Slimmed, measured_speed, multiplications


def summary(ready: Ready, slimmed: Slimmed, final: Model, recipe: Recipe) -> dict[str, Any]:
    """Return groups, parameters, multiplications and speed before and after, as plain values.

    Args:
        ready: what was known before.
        slimmed: what was removed.
        final: the smaller model with plain weights, as it will be written.
        recipe: of the run.
    """
    groups = []
    for item in ready.narrowings:
        gone = slimmed.removed.get(item.group.name)
        count = 0 if gone is None else int(gone.sum())
        groups.append(
            {
                "name": item.group.name,
                "kind": item.group.kind,
                "before": item.group.units,
                "after": item.group.units - count,
                "damage": float(item.damage[min(count, len(item.damage) - 1)]),
                "note": slimmed.kept.get(item.group.name, ""),
            }
        )
    for branch, effect in ready.branches:
        left = int(branch.name not in slimmed.branches)
        groups.append(
            {
                "name": branch.name,
                "kind": "layer",
                "before": 1,
                "after": left,
                "damage": 0.0 if left else effect,
                "note": "",
            }
        )
    return {
        "kinds": recipe.structured.kinds if recipe.structured is not None else (),
        "groups": groups,
        "pinned": [{"name": item.name, "units": item.size, "reason": item.reason} for item in ready.skipped],
        "parameters": [parameters(ready.dense), parameters(final)],
        "multiplications": [multiplications(model, ready.feeds) for model in (ready.dense, final)],
        "predicted": slimmed.predicted,
        "speed": [
            {"threads": threads, "ratio": ratio}
            for threads, ratio in measured_speed(ready.dense, final, ready.feeds, recipe.threads).items()
        ],
    }


def parameters(model: Model) -> int:
    """Return the number of floating-point constants in the main graph, scalars left out."""
    return sum(
        math.prod(tensor.dims)
        for tensor in model.index.tensors.values()
        if tensor.data_type in (1, 10, 11, 16) and len(tensor.dims)
    )
