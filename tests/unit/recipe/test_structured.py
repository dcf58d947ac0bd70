"""Structured patterns as users write them, and how two stages share a sparsity."""

from __future__ import annotations

import pytest

from onnxprune.errors import UsageError
from onnxprune.recipe import Recipe
from onnxprune.recipe.structured import UNITS, Structured, shares


@pytest.mark.parametrize(
    ("text", "kinds", "rest"),
    [
        ("structured", UNITS, ""),
        ("head", ("head",), ""),
        ("head,channel", ("channel", "head"), ""),
        ("layer", ("layer",), ""),
        ("structured,layer", (*UNITS, "layer"), ""),
        ("structured+unstructured", UNITS, "unstructured"),
        ("neuron+2:4", ("neuron",), "2:4"),
        ("structured+4x1", UNITS, "block:4x1"),
        ("structured+8x1,adjacent", UNITS, "block:8x1,adjacent"),
    ],
)
def test_reads_and_writes(text: str, kinds: tuple[str, ...], rest: str) -> None:
    found = Structured.parse(text)
    assert found == Structured(kinds, rest)
    assert Structured.parse(str(found)) == found


def test_a_recipe_reads_its_pattern_once() -> None:
    recipe = Recipe(pattern="channel,head+2:4")
    assert recipe.structured is recipe.structured


@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:4x1", "auto", "neurons"])
def test_other_patterns_are_left_to_others(text: str) -> None:
    assert Structured.parse(text) is None


@pytest.mark.parametrize("text", ["head,2:4", "head,head", "head+", "structured,x"])
def test_mistakes(text: str) -> None:
    with pytest.raises(UsageError, match="wanted structured or some of"):
        Structured.parse(text)


@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("structured", [None, 0.2])
def test_stages_multiply_to_the_whole(sparsity: float, structured: float | None) -> None:
    first, second = shares(sparsity, structured, None)
    assert (1 - first) * (1 - second) == pytest.approx(1 - sparsity)
    assert structured is None or first == structured


def test_a_stage_alone_may_not_exceed_the_whole() -> None:
    with pytest.raises(UsageError, match="both stages together"):
        shares(0.4, None, 0.5)
    with pytest.raises(UsageError, match="both stages together"):
        shares(0.4, 0.5, None)


def test_three_shares_have_to_agree() -> None:
    assert shares(0.65, 0.3, 0.5) == (0.3, 0.5)
    with pytest.raises(UsageError, match=r"0\.9 is for both .* 0\.3 and zeros in 0\.5 .* make 0\.65"):
        Recipe(pattern="structured+2:4", structured_sparsity=0.3, sparsity=0.9)
    assert Recipe(pattern="structured+2:4", structured_sparsity=0.3).target_sparsity == pytest.approx(0.65)


def test_recipe_knows_the_two_stages() -> None:
    recipe = Recipe(pattern="structured+2:4")
    assert recipe.base_pattern == recipe.structure == "2:4"
    assert recipe.target_sparsity == pytest.approx(0.75)
    assert Recipe(pattern="structured").target_sparsity == 0.5
    assert Recipe(pattern="structured").base_pattern == "unstructured"
    assert not Recipe(pattern="structured").asks_for_weights
