"""What goes, and what is said when that is not enough."""

from __future__ import annotations

import pytest

from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import ModelError
from onnxprune.model import Model, label
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.slim.choose import Choice
from onnxprune.slim.decide import choose, gone, stay
from onnxprune.slim.ready import Ready

Given = tuple[Model, CalibrationData, Recipe]


def test_a_few_reasons_are_enough() -> None:
    failed = {"a": "another shape", "b": "not valid", "c": "not valid"}
    assert stay(failed, most=1) == "a stays, since removing its units fails: another shape; and 2 more"
    assert stay(failed).endswith("c stays, since removing its units fails: not valid")


def test_more_than_can_go(given: Given, ready: Ready) -> None:
    with pytest.raises(ModelError, match=r"--sparsity 0.9999 of the multiplications"):
        choose(ready, given[2], 0.9999, NullProgress())


def test_units_inside_a_branch_go_with_it(given: Given, ready: Ready) -> None:
    branch = ready.branches[0][0]
    nodes = {label(given[0].graph.node[k]) for k in branch.nodes}
    groups = [item.group for item in ready.narrowings]
    counts = dict.fromkeys([group.name for group in groups], 1) | {branch.name: 1}
    removed, branches = gone(ready, Choice(counts, 0.5))
    assert branches == [branch]
    assert removed.keys() == {group.name for group in groups if not nodes.issuperset(group.nodes)}
    assert any(nodes.issuperset(group.nodes) for group in groups) and removed
