"""What the fields of a recipe may be, alone and together; each refusal says the way out."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from onnxprune.errors import UsageError
from onnxprune.recipe.choices import (
    ATTENTIONS,
    AUGMENTATIONS,
    CURVES,
    GRADIENT_CRITERIA,
    GRANULARITY,
    LOSSES,
    PATTERN,
    SCHEDULE,
    TRAINING,
)
from onnxprune.recipe.mixture import Mixture
from onnxprune.recipe.smaller import check_structured
from onnxprune.recipe.structured import KINDS
from onnxprune.recipe.threshold import Threshold
from onnxprune.search.floor import Drop

if TYPE_CHECKING:
    from onnxprune.recipe import Recipe

# The solver raises a ridge that is too small tenfold, seven times: from less it would not get anywhere.
MIN_DAMPING = 1e-8


def check(recipe: Recipe) -> None:
    """Raise UsageError for a value that is out of range, and for values that do not go together."""
    if recipe.sparsity is not None and not 0.0 <= recipe.sparsity < 1.0:
        raise UsageError(
            f"--sparsity is {recipe.sparsity:g}, wanted a share from 0 to below 1", "write 0.7 for 70 %"
        )
    for item in dataclasses.fields(recipe):
        choices, value = item.metadata["choices"], getattr(recipe, item.name)
        if choices and value not in choices and not (value is None and item.default is None):
            raise UsageError(
                f"--{item.name.replace('_', '-')} is {value!r}, wanted one of {', '.join(choices)}"
            )
    _check_pattern(recipe)
    _check_choice(recipe)
    _check_target(recipe)
    _check_budget(recipe)
    _check_training(recipe)
    for name in recipe.attention:
        if name not in ATTENTIONS:
            raise UsageError(f"--attention is {name!r}, wanted some of {', '.join(ATTENTIONS)}")
    if not recipe.attention or ("off" in recipe.attention and len(recipe.attention) > 1):
        raise UsageError("--attention off goes with nothing else", "leave --attention out")
    _check_search(recipe)
    for name in (
        "samples",
        "min_size",
        "max_length",
        "batch_size",
        "batch",
        "threads",
        "resize",
        "steps",
        "patience",
    ):
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}, wanted at least 1")
    if not MIN_DAMPING <= recipe.damping < 10.0:
        raise UsageError(
            f"--damping is {recipe.damping:g}, wanted a share from {MIN_DAMPING:g} to below 10", "try 0.01"
        )
    if not 0.0 < recipe.max_memory < math.inf:
        raise UsageError(f"--max-memory is {recipe.max_memory:g} GiB, wanted a number above 0")
    if recipe.seed < 0:
        raise UsageError(f"--seed is {recipe.seed}, wanted 0 or more")
    for name in ("mean", "std"):
        if not all(map(math.isfinite, getattr(recipe, name))):
            raise UsageError(f"--{name} is {','.join(map(str, getattr(recipe, name)))}, wanted numbers")


def _check_pattern(recipe: Recipe) -> None:
    structured = recipe.structured
    match = PATTERN.fullmatch(recipe.pattern if structured is None else structured.rest or "unstructured")
    if not match:
        raise UsageError(
            f"--pattern is {recipe.pattern!r}, wanted unstructured, N:M, block:RxC[,adjacent], auto, "
            f"structured or some of {', '.join(KINDS)}"
        )
    if match["n"] and not 0 < int(match["n"]) < int(match["m"]):
        raise UsageError(f"--pattern {recipe.pattern} keeps N of every M weights and needs 0 < N < M")
    if (
        match["n"]
        and structured is None
        and recipe.sparsity is not None
        and recipe.sparsity > 1 - int(match["n"]) / int(match["m"]) + 1e-9
    ):
        raise UsageError(
            f"--sparsity {recipe.sparsity:g} is more than pattern {recipe.pattern} can give "
            f"({1 - int(match['n']) / int(match['m']):g})",
            "leave --sparsity out to get all that the pattern gives",
        )
    if match["r"] and int(match["r"]) * int(match["c"]) < 1:
        raise UsageError(f"--pattern {recipe.pattern} needs blocks of at least 1x1")
    check_structured(recipe)


def _check_budget(recipe: Recipe) -> None:
    if recipe.pattern == "auto" and recipe.allocation not in CURVES:
        raise UsageError(
            f"--pattern auto measures the layers, --allocation {recipe.allocation} does not",
            "leave --allocation out",
        )
    amounts_of = ("target_size", "target_speedup", "plan", "threshold")
    given = [name for name in amounts_of if getattr(recipe, name) is not None]
    if recipe.sparsity is not None and given:
        given.append("sparsity")
    if recipe.searches and given:
        given.append("max_drop" if recipe.max_drop is not None else "min_agreement")
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{names} each say how much is pruned", "leave one of the two out")
    if recipe.plan is not None and recipe.allocation != "sensitivity":
        raise UsageError(
            f"--plan says how much each layer loses, and so does --allocation {recipe.allocation}",
            "leave one of the two out",
        )
    kind = PATTERN.fullmatch(recipe.base_pattern)
    if given not in ([], ["plan"]) and kind is not None and kind["n"]:
        raise UsageError(
            f"--{given[0].replace('_', '-')} needs any number of zeros, pattern {recipe.pattern} has one",
            "leave one of the two out",
        )
    if recipe.size_limit is not None and recipe.format == "dense":
        raise UsageError(
            "--target-size needs packed weights, with --format dense zeros take as much room as before",
            "leave one of the two out",
        )
    if recipe.budget == "flops" and recipe.structured is not None and recipe.speedup is not None:
        raise UsageError("--budget says what --sparsity is a share of", "give --sparsity")
    if recipe.budget == "flops" and recipe.allocation not in CURVES and recipe.structured is None:
        raise UsageError(
            f"--budget flops weighs damage against multiplications, --allocation {recipe.allocation} knows "
            "no damage",
            f"--allocation {' or '.join(CURVES)}",
        )
    if recipe.budget == "flops" and recipe.structured is None and (given or (kind is not None and kind["n"])):
        raise UsageError("--budget says what --sparsity is a share of", "give --sparsity")
    if recipe.speedup is not None and recipe.target != "cpu" and recipe.structured is None:
        none = "has none" if recipe.target == "stock" else "is not predicted"
        raise UsageError(
            f"--target-speedup is what kernels gain, --target-runtime {recipe.target} {none}",
            "leave one of the two out",
        )


def _check_choice(recipe: Recipe) -> None:
    """Check how weights are chosen: criterion, threshold, selection, granularity."""
    mixture = Mixture.parse(recipe.criterion)
    if not 0.0 <= recipe.alpha < math.inf:
        raise UsageError(f"--alpha is {recipe.alpha:g}, wanted a number from 0 up")
    if recipe.alpha != 1.0 and not mixture.weight("adaptive"):
        raise UsageError("--alpha is for --criterion adaptive", "leave one of the two out")
    match = GRANULARITY.fullmatch(recipe.granularity)
    if not match or (match["share"] and not float(match["share"])):
        raise UsageError(
            f"--granularity is {recipe.granularity!r}, wanted weight, neuron, hybrid or hybrid:S, 0 < S < 1"
        )
    if recipe.granularity != "weight" and recipe.base_pattern != "unstructured":
        raise UsageError(
            f"--granularity {recipe.granularity} and --pattern {recipe.pattern} both say what goes together",
            "leave one of the two out",
        )
    hybrid = recipe.granularity.startswith("hybrid")
    if recipe.granularity != "weight" and recipe.solver == "sweep" and mixture.solves:
        raise UsageError(
            f"--granularity {recipe.granularity} needs all columns at once, --solver sweep walks them"
        )
    if hybrid and recipe.selection == "sample":
        raise UsageError(
            f"--selection sample draws weights or neurons, --granularity {recipe.granularity} mixes them"
        )
    if "layer" in recipe.attention and (recipe.allocation not in CURVES or recipe.plan or recipe.threshold):
        raise UsageError(
            "--attention layer weighs what pruning a layer costs, and nothing is shared by costs here",
            f"--allocation {' or '.join(CURVES)} does, without --plan and --threshold",
        )
    if recipe.threshold is None:
        if recipe.removal != 1.0:
            raise UsageError("--removal is for --threshold", "with --sparsity the share is known already")
        return
    _check_threshold(recipe, mixture)


def _check_threshold(recipe: Recipe, mixture: Mixture) -> None:
    assert recipe.threshold is not None
    if recipe.attention != ("off",):
        raise UsageError(
            "--threshold is held against saliencies that attention does not weigh", "leave --attention out"
        )
    threshold = Threshold.parse(recipe.threshold)
    if not 0.0 < recipe.removal <= 1.0:
        raise UsageError(f"--removal is {recipe.removal:g}, wanted a share above 0 and up to 1")
    if recipe.sparsity is not None:
        raise UsageError(
            "--sparsity and --threshold both say how much is removed", "leave one of the two out"
        )
    if recipe.pattern != "unstructured":
        raise UsageError(
            f"--threshold judges each weight by itself, --pattern {recipe.pattern} does not",
            "with a pattern say --sparsity",
        )
    if recipe.granularity.startswith("hybrid"):
        raise UsageError(
            f"--threshold judges weights or neurons, --granularity {recipe.granularity} mixes them"
        )
    if recipe.allocation != "sensitivity":
        raise UsageError(
            f"--threshold says how much each layer loses, and so does --allocation {recipe.allocation}",
            "leave one of the two out",
        )
    if threshold.kind == "attention" and (mixture.solves or recipe.selection == "sample"):
        what = f"--criterion {recipe.criterion}" if mixture.solves else "--selection sample"
        raise UsageError(
            f"--threshold {recipe.threshold} says which features go, {what} chooses for itself",
            "--criterion attention goes with it",
        )


def _check_target(recipe: Recipe) -> None:
    if recipe.target_runtime != "cuda":
        for name in ("batch", "cuda_table"):
            if getattr(recipe, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} is for --target-runtime cuda", "leave one of the two out"
                )
    if recipe.values != "same" and recipe.format != "packed":
        raise UsageError(
            f"--values {recipe.values} is for packed weights, --format is {recipe.format}",
            "leave one of the two out",
        )
    if recipe.target_runtime in ("cpu", "cuda") and recipe.format != "packed":
        raise UsageError(
            f"--target-runtime {recipe.target_runtime} needs packed weights, --format is {recipe.format}",
            "leave one of the two out",
        )


def _check_search(recipe: Recipe) -> None:
    if recipe.max_drop is not None:
        Drop.parse(recipe.max_drop)
    if recipe.min_agreement is not None and not 0.0 < recipe.min_agreement <= 1.0:
        raise UsageError(
            f"--min-agreement is {recipe.min_agreement:g}, wanted a share above 0, up to 1", "try 0.98"
        )
    if recipe.time_limit is not None and not 0.0 < recipe.time_limit < math.inf:
        raise UsageError(f"--time-limit is {recipe.time_limit:g} minutes, wanted a number above 0")
    if recipe.eval is not None and recipe.metric is not None:
        raise UsageError("--eval and --metric both measure the task", "leave one of the two out")
    if recipe.metric is not None and recipe.labels is None:
        raise UsageError(f"--metric {recipe.metric} needs labels", "--labels names their array in --data")
    if not recipe.searches:
        asked = [name for name in ("patience", "time_limit") if getattr(recipe, name) is not None]
        if asked:
            raise UsageError(
                f"--{asked[0].replace('_', '-')} is for a search", "add --max-drop or --min-agreement"
            )
        return
    floor = "--max-drop" if recipe.max_drop is not None else "--min-agreement"
    if recipe.sparsity is not None:
        raise UsageError(
            f"{floor} finds the sparsity, --sparsity {recipe.sparsity:g} sets it",
            f"drop --sparsity to search, or {floor} to prune to that sparsity",
        )
    if recipe.rounds > 1:
        raise UsageError(
            f"--schedule {recipe.schedule} needs a sparsity to grow to, {floor} finds it",
            "leave one of the two out",
        )
    if recipe.max_drop is not None and recipe.eval is None and recipe.metric is None:
        raise UsageError(
            "--max-drop needs a metric",
            "add --eval, or --metric and --labels; --min-agreement needs none",
        )


def _check_training(recipe: Recipe) -> None:
    for name, least in (("lr", 0.0), ("minutes", 0.0)):
        value = getattr(recipe, name)
        if value is not None and not least < value < math.inf:
            raise UsageError(f"--{name} is {value:g}, wanted a number above {least:g}")
    if not (recipe.loss in LOSSES or ":" in recipe.loss):
        raise UsageError(f"--loss is {recipe.loss!r}, wanted {', '.join(LOSSES)} or FILE.py:function")
    for name in recipe.augment:
        if name not in AUGMENTATIONS:
            raise UsageError(f"--augment is {name!r}, wanted some of {', '.join(AUGMENTATIONS)}")
    if len(recipe.augment) > 1 and {"auto", "none"} & set(recipe.augment):
        raise UsageError("--augment auto and --augment none go with nothing else")
    if recipe.scope == "block" and recipe.loss not in ("auto", "mse"):
        raise UsageError(
            f"--loss {recipe.loss} is for outputs, --scope block compares the values at the ends of blocks",
            "leave one of the two out",
        )
    if recipe.scope == "block" and recipe.augment not in (("auto",), ("none",)):
        raise UsageError("--augment is for --scope model: blocks learn from the samples as they are")
    _check_labels(recipe)
    match = SCHEDULE.fullmatch(recipe.schedule)
    if not match or match["n"] == "0":
        raise UsageError(f"--schedule is {recipe.schedule!r}, wanted oneshot or cubic:N, such as cubic:4")
    if recipe.rounds > 1 and ":" in recipe.pattern and not recipe.pattern.startswith("block"):
        raise UsageError(
            f"--schedule {recipe.schedule} grows the sparsity, pattern {recipe.pattern} is all or nothing",
            "leave one of the two out",
        )
    if recipe.steps is not None and recipe.rounds > recipe.steps:
        raise UsageError(f"--schedule {recipe.schedule} needs a step a round, --steps is {recipe.steps}")
    fields = [item for item in dataclasses.fields(recipe) if item.name in TRAINING]
    asked = [item.name for item in fields if getattr(recipe, item.name) != _default(item)]
    if asked and not recipe.finetune:
        raise UsageError(f"--{asked[0]} is for fine-tuning", "add --finetune")


def _check_labels(recipe: Recipe) -> None:
    if recipe.labels is None:
        return
    if not (recipe.finetune or recipe.metric or Mixture.parse(recipe.criterion).gradients):
        raise UsageError(
            "--labels is for fine-tuning, for --metric and for criteria that need gradients",
            f"add --finetune, --metric, or --criterion {', '.join(GRADIENT_CRITERIA)}",
        )
    if not recipe.labels:
        raise UsageError("--labels is empty", "name the array that holds the labels")
    if recipe.scope == "block":
        raise UsageError(
            "--labels are for outputs, --scope block compares the values at the ends of blocks",
            "leave one of the two out",
        )
    if "mix" in recipe.augment:
        raise UsageError(
            "--augment mix blends samples, and a blend has no label",
            "leave --augment mix or --labels out",
        )


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
