"""Which positions of a model's values a smaller one still has: so that the two can be compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.structure.groups import Structure
from onnxprune.structure.masking import Removed
from onnxprune.structure.shrunk import Shrunk

Positions = dict[int, NDArray[np.int64]]  # axis that shrank -> positions that are left, in order
Remains = Mapping[str, Positions]  # of the values that shrank


def remains(structure: Structure, removed: Removed, before: Remains | None = None) -> dict[str, Positions]:
    """Return what is left of the values that shrink.

    Args:
        structure: of the model that units go from.
        removed: group name -> bool (units,), True for each unit that goes.
        before: what that model has of an earlier one, whose positions are wanted.
    """
    shrunk, found = Shrunk(structure, dict(removed)), {}
    for name, sizes in structure.layout.sizes.items():
        positions = dict((before or {}).get(name, {}))
        for axis, size in enumerate(sizes):
            kept = shrunk.kept(name, axis)
            if kept is not None:
                positions[axis] = positions.get(axis, np.arange(size, dtype=np.int64))[kept]
        if positions:
            found[name] = positions
    return found
