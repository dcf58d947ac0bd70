"""Which groups and branches can go: tried before any is chosen, since what fails later was counted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.model import Model
from onnxprune.slim.branches import Branch, bypass, close, gated
from onnxprune.structure.check import check_removal, remove_checked
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


def failing_branches(
    dense: Model, branches: Sequence[Branch], feeds: Sequence[Mapping[str, Any]], threads: int | None = None
) -> dict[str, str]:
    """Return branch name -> why the model without it is another one than with its gate closed.

    All go at once first, and one by one if that fails.

    Args:
        dense: the model.
        branches: of it.
        feeds: inputs that the model runs on, of several sizes.
        threads: of ONNX Runtime.
    """
    if not branches or not _fails(dense, branches, feeds, threads):
        return {}
    found = {branch.name: _fails(dense, [branch], feeds, threads) for branch in branches}
    return {name: why for name, why in found.items() if why}


def _fails(
    dense: Model, branches: Sequence[Branch], feeds: Sequence[Mapping[str, Any]], threads: int | None
) -> str:
    closed, gates = gated(dense, branches)
    close(closed, gates, gates)
    smaller = bypass(dense, branches)
    reasons = (check_removal(closed, smaller, given, threads) for given in feeds)
    return next((reason for reason in reasons if reason), "")
