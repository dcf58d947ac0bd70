"""What a model does and holds, as amounts that fall with the units of its groups."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from onnxprune.allocation.widths import Side, Work
from onnxprune.model import Model
from onnxprune.slim.branches import Branch, Shapes
from onnxprune.slim.products import node_works
from onnxprune.structure.groups import Group, Layout


class Owners:
    """Answers which groups own how much of an axis.

    Args:
        groups: whose units may go; what others own stays.
        layout: labels of the positions of activations.
        branches: that may go as a whole; each is a group of one unit.
    """

    def __init__(self, groups: Sequence[Group], layout: Layout, branches: Sequence[Branch] = ()) -> None:
        self.layout, self.branches = layout, branches
        self._parts: dict[str, dict[int, list[tuple[str, float]]]] = {}
        self._of: dict[int, str] = {}
        for group in groups:
            self._of.update(dict.fromkeys(group.labels.tolist(), group.name))
            for part in group.parts:
                share = float((part.index >= 0).mean())
                axes = self._parts.setdefault(part.tensor, {})
                axes.setdefault(part.axis, []).append((group.name, share))

    def tensors(self, model: Model) -> set[str]:
        """Return the stored tensors that shrink or go."""
        inside = {n for b in self.branches for k in b.nodes for n in model.graph.node[k].input}
        return set(self._parts) | (inside & model.index.tensors.keys())

    def around(self, nodes: Collection[int]) -> tuple[Side, ...]:
        """Return the branches that all of some nodes lie in."""
        return tuple(Side(((b.name, 1.0),)) for b in self.branches if nodes and b.nodes.issuperset(nodes))

    def tensor(self, name: str, axis: int) -> Side:
        """Return who owns an axis of a stored tensor."""
        return Side(tuple(self._parts.get(name, {}).get(axis, ())))

    def value(self, name: str, axis: int) -> Side:
        """Return who owns an axis of an activation."""
        axes = self.layout.axes.get(name)
        if axes is None or not -len(axes) <= axis < len(axes) or isinstance(axes[axis], str):
            return Side()
        labels, counts = np.unique(np.asarray(axes[axis]), return_counts=True)
        shares: dict[str, float] = {}
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            if label in self._of:
                owner = self._of[label]
                shares[owner] = shares.get(owner, 0.0) + count / int(counts.sum())
        return Side(tuple(shares.items()))


def weight_works(model: Model, owners: Owners) -> list[Work]:
    """Return the elements of every stored tensor that can shrink."""
    found = []
    for name in sorted(owners.tensors(model)):
        shape = tuple(model.index.tensors[name].dims)
        around = owners.around([use.index for use in model.index.uses.get(name, [])])
        sides = (owners.tensor(name, k) for k in range(len(shape)))
        found.append(Work(math.prod(shape), (*sides, *around)))
    return found


def flop_works(model: Model, owners: Owners, shapes: Shapes) -> list[Work]:
    """Return the multiplications of every product: convolutions, matrices, attention, recurrent layers.

    Args:
        model: the model.
        owners: of the axes.
        shapes: of the activations on the sample that counts.
    """
    return [
        within(work, owners, position)
        for position, node in enumerate(model.graph.node)
        for work in node_works(model, node, owners, shapes)
    ]


def within(work: Work, owners: Owners, position: int) -> Work:
    """Return the work of a node that goes with the branches it lies in."""
    around = owners.around([position])
    if not around:
        return work
    sides = work.sides if work.table is None else (*work.sides, Side(), Side())[: max(2, len(work.sides))]
    return Work(work.amount, (*sides, *around), work.table)
