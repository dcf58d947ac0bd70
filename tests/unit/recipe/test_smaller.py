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


@pytest.mark.parametrize(
    "fields",
    [
        {"solver": "sweep"},
        {"solve": "one-shot"},
        {"min_size": 1000},
        {"format": "sparse-initializer"},
        {"values": "fp16"},
    ],
)
def test_what_is_for_zeros_needs_a_second_stage(fields: dict[str, Any]) -> None:
    refused("for weights that become zero, --pattern structured only", pattern="structured", **fields)
    Recipe(pattern="structured+2:4", **fields)


def test_options_of_some_kinds() -> None:
    refused("--round-to is for channel, neuron", pattern="head,layer", round_to=4)
    refused("--criterion wanda orders units", pattern="layer", criterion="wanda")
    refused("--attention layer weighs", pattern="structured", attention=("layer",))
    Recipe(pattern="structured", round_to=4, attention=("head", "token"))


def test_whole_branches_are_compared_by_outputs_only() -> None:
    refused("a residual branch has no reader", pattern="structured,layer", allocation="error")
    refused("as a whole or stays", pattern="structured,layer", allocation="uniform")
    Recipe(pattern="structured", allocation="error")
