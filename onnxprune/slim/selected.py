"""Which groups and branches the recipe lets go, and why others stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxprune.layers.find import is_matrix, why_left_alone
from onnxprune.model import Model, label
from onnxprune.recipe import Recipe
from onnxprune.slim.branches import Branch
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
    dense: Model, structure: Structure, recipe: Recipe
) -> tuple[list[Group], list[Pinned | Stays]]:
    """Return the groups that the recipe names, and why others stay."""
    structured = recipe.structured
    assert structured is not None
    skipped: list[Pinned | Stays] = list(structure.pinned)
    groups = []
    for group in structure.groups:
        if group.kind not in structured.kinds:
            reason = f"--pattern {recipe.pattern} does not name {group.kind}"
            skipped.append(Stays(group.name, group.kind, group.units, reason))
        elif reason := _left_alone(dense, [part.tensor for part in group.parts], recipe):
            skipped.append(Stays(group.name, group.kind, group.units, reason))
        else:
            groups.append(group)
    return groups, skipped


def selected_branches(
    dense: Model, branches: Sequence[Branch], recipe: Recipe
) -> tuple[list[Branch], list[Pinned | Stays]]:
    """Return the branches that the recipe lets go, and why others stay."""
    chosen: list[Branch] = []
    skipped: list[Pinned | Stays] = []
    for branch in branches:
        nodes = [dense.graph.node[k] for k in sorted(branch.nodes)]
        tensors = [name for node in nodes for name in node.input if name in dense.index.tensors]
        # Nodes without weights have names as well; --include is about weights
        reason = why_left_alone([branch.name, *map(label, nodes)], (), recipe.exclude)
        reason = reason or _left_alone(dense, tensors, recipe)
        if reason:
            skipped.append(Stays(branch.name, "layer", 1, reason))
        else:
            chosen.append(branch)
    return chosen, skipped


def _left_alone(dense: Model, tensors: Iterable[str], recipe: Recipe) -> str:
    """Return which of some stored tensors is not to change and why, empty where all may.

    Whatever operator reads them, and vectors too. Only --include does not ask for vectors: what belongs to a
    matrix that it names goes along.
    """
    for name in dict.fromkeys(tensors):
        nodes = [label(dense.graph.node[use.index]) for use in dense.index.uses.get(name, [])]
        include = recipe.include if is_matrix(dense.index.tensors[name]) else ()
        reason = why_left_alone([name, *nodes], include, recipe.exclude)
        if reason:
            return f"{name} is {reason}"
    return ""
