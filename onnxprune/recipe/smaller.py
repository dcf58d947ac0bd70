"""What goes with patterns that make shapes smaller."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from onnxprune.errors import UsageError
from onnxprune.recipe.choices import CRITERIA_OF_UNITS, CURVES
from onnxprune.recipe.structured import ROUNDED, Structured, shares

if TYPE_CHECKING:
    from onnxprune.recipe import Recipe


def check_structured(recipe: Recipe) -> None:
    """Check what goes with patterns that make shapes smaller."""
    structured = recipe.structured
    for name in ("structured_sparsity", "round_to"):
        if structured is None and getattr(recipe, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for structured patterns", "--pattern structured")
    if structured is None:
        return
    _check_amounts(recipe, structured)
    _check_units(recipe, structured)
    if not structured.rest:
        _check_no_zeros(recipe)
    _check_kinds(recipe, structured)
    if structured.rest and recipe.speedup is not None:
        raise UsageError(
            f"--target-speedup is reached by removing units alone, --pattern {recipe.pattern} also sets "
            "weights to zero",
            f"--pattern {str(structured).partition('+')[0]}, or --sparsity",
        )
    stages(recipe)


def _check_amounts(recipe: Recipe, structured: Structured) -> None:
    """Check the numbers."""
    if recipe.round_to is not None and recipe.round_to < 1:
        raise UsageError(f"--round-to is {recipe.round_to}, wanted at least 1")
    share = recipe.structured_sparsity
    if share is not None and not 0.0 < share < 1.0:
        raise UsageError(f"--structured-sparsity is {share:g}, wanted a share above 0 and below 1")
    if share is not None and not structured.rest:
        raise UsageError(
            f"--structured-sparsity splits --sparsity in two, and --pattern {recipe.pattern} has one stage",
            "say --sparsity, or --pattern structured+unstructured",
        )


def _check_units(recipe: Recipe, structured: Structured) -> None:
    """Refuse what is for weights one by one, where whole units are removed."""
    refused = {
        "--pattern structured+auto": structured.rest == "auto",
        f"--threshold {recipe.threshold}": recipe.threshold is not None,
        "--plan": recipe.plan is not None,
        "--target-size": recipe.target_size is not None,
        f"--granularity {recipe.granularity}": recipe.granularity != "weight",
        f"--selection {recipe.selection}": recipe.selection != "rank",
        f"--schedule {recipe.schedule}": recipe.schedule != "oneshot" and bool(structured.rest),
        f"--allocation {recipe.allocation}": recipe.allocation not in (*CURVES, "uniform"),
    }
    for asked, found in refused.items():
        if found:
            raise UsageError(
                f"{asked} is for weights one by one, --pattern {recipe.pattern} removes whole units",
                "prune the smaller model that comes out of it in a second run",
            )
    if recipe.searches and structured.rest:
        floor = "--max-drop" if recipe.max_drop is not None else "--min-agreement"
        raise UsageError(
            f"{floor} finds one share, --pattern {recipe.pattern} has two",
            f"search with --pattern {str(structured).partition('+')[0]}, then prune the weights of what "
            "comes out of it in a second run",
        )
    if recipe.criterion not in CRITERIA_OF_UNITS:
        raise UsageError(
            f"--criterion {recipe.criterion} scores weights one by one, --pattern {recipe.pattern} removes "
            "whole units",
            f"--criterion {', '.join(CRITERIA_OF_UNITS)}"
            + (", or prune the smaller model in a second run" if structured.rest else ""),
        )


def _check_no_zeros(recipe: Recipe) -> None:
    """Refuse what is for weights that are zero, when none become zero."""
    ignored = {
        f"--solver {recipe.solver}": recipe.solver != "admm",
        f"--solve {recipe.solve}": recipe.solve != "sequential",
        f"--min-size {recipe.min_size}": recipe.min_size != _default(recipe, "min_size"),
        f"--format {recipe.format}": recipe.format == "sparse-initializer",
        f"--values {recipe.values}": recipe.values != "same",
    }
    for asked, found in ignored.items():
        if found:
            raise UsageError(
                f"{asked} is for weights that become zero, --pattern {recipe.pattern} only removes units",
                f"leave it out, or --pattern {recipe.pattern}+unstructured",
            )


def _check_kinds(recipe: Recipe, structured: Structured) -> None:
    """Check what only some kinds of units know."""
    if recipe.round_to is not None and not set(structured.kinds) & set(ROUNDED):
        raise UsageError(
            f"--round-to is for {', '.join(ROUNDED)}; what --pattern {recipe.pattern} names goes one by one",
            "leave --round-to out",
        )
    if "layer" in recipe.attention:
        raise UsageError(
            "--attention layer weighs what pruning a matrix costs, --pattern "
            f"{recipe.pattern} goes by what the output does without its units",
            "--attention head weighs heads, --attention token tokens",
        )
    if "layer" not in structured.kinds:
        return
    if recipe.allocation != "sensitivity":
        why = {
            "error": "holds the readers' errors against each other, and a residual branch has no reader: "
            "only what the model's output does without it is known",
            "uniform": "takes the same share of all, and a residual branch goes as a whole or stays",
        }
        raise UsageError(
            f"--allocation {recipe.allocation} {why[recipe.allocation]}",
            "leave --allocation out, or layer out of --pattern",
        )
    if structured.kinds == ("layer",) and not structured.rest and recipe.criterion != "obs":
        raise UsageError(
            f"--criterion {recipe.criterion} orders units, --pattern layer removes whole residual branches",
            "leave --criterion out",
        )


def _default(recipe: Recipe, name: str) -> Any:
    return next(item.default for item in fields(recipe) if item.name == name)


def stages(recipe: Recipe) -> tuple[float, Recipe | None]:
    """Return the share that is removed, and the recipe of what is done to the rest; None for nothing.

    Raises:
        UsageError: when the shares do not agree, or the second stage is told what it cannot do.
    """
    structured = recipe.structured
    assert structured is not None
    if not structured.rest:
        return recipe.target_sparsity, None
    limit = recipe.pattern_limit
    share, zeros = shares(recipe.target_sparsity, recipe.structured_sparsity, limit if limit < 1 else None)
    # Where every layer loses the same share, weights and multiplications fall alike
    same = limit < 1 or recipe.allocation not in CURVES
    return share, replace(
        recipe,
        pattern=structured.rest,
        sparsity=zeros,
        structured_sparsity=None,
        round_to=None,
        budget="weights" if same else recipe.budget,
    )
