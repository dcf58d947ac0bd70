"""Which groups can lose units: tried before any is chosen, since what fails later was counted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.model import Model
from onnxprune.structure.check import remove_checked
from onnxprune.structure.groups import Group, Structure


def failing(
    dense: Model,
    structure: Structure,
    groups: Sequence[Group],
    feeds: Mapping[str, Any],
    threads: int | None = None,
) -> dict[str, str]:
    """Return group name -> why removing units from it gives another model than masking them.

    Half of the units of each group go, of all groups at once first.

    Args:
        dense: the model.
        structure: of it.
        groups: to try.
        feeds: one batch of inputs.
        threads: of ONNX Runtime.
    """
    rng = np.random.default_rng(0)  # units that lie side by side could hide what depends on positions
    half = {group.name: rng.permutation(group.units) < max(1, group.units // 2) for group in groups}
    _, _, failed = remove_checked(dense, structure, half, feeds, threads)
    return failed
