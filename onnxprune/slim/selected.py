"""Which groups the recipe names, and why others stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.structure.groups import Group, Pinned, Structure


@dataclass(frozen=True)
class Stays:
    """A group or a residual branch that stays as it is.

    Attributes:
        name: of it.
        kind: as of groups, or ``layer``.
        size: number of units.
        reason: one plain phrase.
    """

    name: str
    kind: str
    size: int
    reason: str


def selected_groups(
    dense: Model, structure: Structure, layers: Sequence[Layer], recipe: Recipe
) -> tuple[list[Group], list[Pinned | Stays]]:
    """Return the groups that the recipe names, and why others stay."""
    structured = recipe.structured
    assert structured is not None
    left_alone = {layer.name for layer in find_layers(dense, min_size=1)[0]}
    left_alone -= {layer.name for layer in layers}
    skipped: list[Pinned | Stays] = list(structure.pinned)
    groups = []
    for group in structure.groups:
        if group.kind not in structured.kinds:
            reason = f"--pattern {recipe.pattern} does not name {group.kind}"
            skipped.append(Stays(group.name, group.kind, group.units, reason))
        elif any(part.tensor in left_alone for part in group.parts):
            reason = "--include or --exclude leaves its weights alone"
            skipped.append(Stays(group.name, group.kind, group.units, reason))
        else:
            groups.append(group)
    return groups, skipped
