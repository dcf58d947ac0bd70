"""What does not go with structured patterns is refused, none of it ignored."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.errors import UsageError
from onnxprune.recipe import Recipe
from onnxprune.recipe.smaller import stages


def refused(message: str, **fields: Any) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize("pattern", ["structured", "head+2:4", "structured+unstructured"])
@pytest.mark.parametrize("criterion", ["fisher", "activation", "obs+fisher", "0.7*wanda+0.3*magnitude"])
def test_criteria_of_single_weights(pattern: str, criterion: str) -> None:
    refused("scores weights one by one", pattern=pattern, criterion=criterion)
    for known in ("obs", "wanda", "magnitude"):
        Recipe(pattern=pattern, criterion=known)


@pytest.mark.parametrize(
    ("pattern", "allocation", "budget"),
    [
        ("structured+2:4", "sensitivity", "weights"),
        ("structured+unstructured", "uniform", "weights"),
        ("structured+unstructured", "sensitivity", "flops"),
    ],
)
def test_both_stages_know_multiplications(pattern: str, allocation: str, budget: str) -> None:
    share, rest = stages(Recipe(pattern=pattern, allocation=allocation, budget="flops", sparsity=0.7))
    assert rest is not None and rest.budget == budget
    assert (1 - share) * (1 - rest.target_sparsity) == pytest.approx(0.3)


def test_what_the_second_stage_refuses_is_refused_at_once() -> None:
    refused("needs 0 < N < M", pattern="structured+4:2", sparsity=0.7)
    refused("needs blocks of at least 1x1", pattern="structured+block:0x1")
    Recipe(pattern="structured+2:4", sparsity=0.7)
