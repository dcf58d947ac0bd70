"""Removal equals masking, on a graph for each way in which operators use units."""

from __future__ import annotations

import pytest

from tests.unit.structure.cases import FAMILIES, Case
from tests.unit.structure.graphs import assert_removal_is_masking, graph, summary

CASES = [
    pytest.param(case, id=f"{family}: {name}")
    for family, cases in FAMILIES.items()
    for name, case in cases.items()
]


@pytest.mark.parametrize("case", CASES)
def test_removal_is_masking(case: Case) -> None:
    model, feeds = graph(case.text, case.weights, case.opset)
    structure = assert_removal_is_masking(model, feeds)
    assert summary(structure) == case.groups
