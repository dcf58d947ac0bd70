"""The shapes of a model's values after units went."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.structure.groups import Structure


class Shrunk:
    """Which positions of which axes are left.

    Args:
        structure: of the dense model.
        removed: group name -> bool (units,), True for each unit that goes.
    """

    def __init__(self, structure: Structure, removed: dict[str, NDArray[np.bool_]]) -> None:
        self.layout = structure.layout
        parts = [structure.group(name).labels[mask] for name, mask in removed.items()]
        gone = np.concatenate(parts) if parts else np.empty(0, np.int64)
        known = (a for axes in self.layout.axes.values() for a in axes if not isinstance(a, str) and len(a))
        size = 1 + max((int(labels.max()) for labels in known), default=0)
        self._gone = np.zeros(size, bool)
        self._gone[gone] = True

    def kept(self, name: str, axis: int) -> NDArray[np.bool_] | None:
        """Return bool (size of the axis,), True for each position that stays; None when all do."""
        axes = self.layout.axes.get(name)
        labels = axes[axis] if axes else ""
        if isinstance(labels, str):
            return None
        gone = self._gone[labels]
        return ~gone if gone.any() else None

    def size(self, name: str, axis: int) -> int:
        """Return how many positions are left on an axis, in the sample run."""
        kept = self.kept(name, axis)
        return self.layout.sizes[name][axis] if kept is None else int(kept.sum())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that a value has in the sample run."""
        return tuple(self.size(name, axis) for axis in range(len(self.layout.sizes[name])))

    def changed(self, name: str) -> bool:
        """Whether any axis of a value shrinks."""
        return name in self.layout.sizes and self.shape(name) != self.layout.sizes[name]
