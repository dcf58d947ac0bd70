"""Set units to zero without changing a shape: the dense model that a smaller one must equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.model import Model
from onnxprune.structure.groups import Group, Structure

Removed = Mapping[str, NDArray[np.bool_]]


def mask_units(model: Model, structure: Structure, removed: Removed) -> Model:
    """Return a copy of the model in which nothing reads the units that go.

    Their columns in the weights that read them become zero. What makes them stays: a row of zeros may end
    as 0 / 0 in a normalisation on its way to the columns, and has no effect behind them. Only where a sum
    runs along the units what makes them becomes zero too.

    Args:
        model: the model, or one with other values in the same weights.
        structure: of the model.
        removed: group name -> bool (units,), True for each unit that goes.

    Raises:
        UsageError: when a name is unknown, a mask does not fit, or no unit would be left.
    """
    check_removed(structure, removed)
    result = model.copy()
    fresh: dict[str, NDArray[Any]] = {}
    for name, mask in removed.items():
        for part in (part for part in structure.group(name).parts if part.masked):
            array = fresh.setdefault(part.tensor, np.array(result.array(part.tensor)))
            gone = np.append(mask, False)[part.index]  # -1 is the last
            array[(slice(None),) * part.axis + (gone,)] = 0
    for tensor, array in fresh.items():
        result.set_array(tensor, array)
    return result


def check_removed(structure: Structure, removed: Removed) -> None:
    """Check that masks fit the groups.

    Raises:
        UsageError: when a name is unknown, a mask does not fit, or no unit would be left.
    """
    groups: dict[str, Group] = {group.name: group for group in structure.groups}
    for name, mask in removed.items():
        if name not in groups:
            raise UsageError(f"no group {name!r}")
        if mask.dtype != np.bool_ or mask.shape != (groups[name].units,):
            raise UsageError(
                f"group {name!r}: wanted {groups[name].units} booleans, got {mask.dtype}{list(mask.shape)}"
            )
        if mask.all():
            raise UsageError(f"group {name!r}: its last unit cannot go")
