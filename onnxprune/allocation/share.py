"""Share the zeros out among the layers, for a budget of weights, multiplications, bytes or time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from onnxprune.allocation import planfile
from onnxprune.allocation.auto import CANDIDATES, Choice, Choices, fastest, least_damage
from onnxprune.allocation.budget import GRID, Curve, allocate, level
from onnxprune.allocation.filesize import rough_bytes, tried_bytes
from onnxprune.allocation.result import Measured, Plan
from onnxprune.allocation.rules import RULES, counts
from onnxprune.allocation.speed import Times, dense_costs, layer_times, relative_times
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import ModelError
from onnxprune.kernels.feeds import typical_feeds
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.solvers.patterns import Pattern

HIGHEST = 0.98  # sparsity that a layer gets at most while the whole has less than 95 %
# Of the way to equal sparsities, see onnxprune.allocation.budget.level
LEVELLED = 0.25
_STEPS = 30
_TRIALS = 4  # of a file's size
_SPARE = 0.004  # of the size: the zeros will lie elsewhere than in the trial
_NEAR = 0.005  # of the size that may be left


def share_out(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, measured: Measured
) -> Plan:
    """Share as many zeros as the recipe asks for among the layers, by what was measured of them.

    Raises:
        ModelError: when no sparsity gives the size or the speed that is asked for.
    """
    if measured.below is not None:
        return Plan(measured.below, {}, measured.tied, slopes=measured.slopes, guide=measured.guide)
    plan = _shared(model, layers, data, recipe, measured)
    return replace(plan, slopes=measured.slopes, guide=measured.guide)


def _shared(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, measured: Measured
) -> Plan:
    if recipe.plan is not None:
        zeros, patterns = planfile.read(recipe.plan, layers, Pattern.parse(recipe.structure))
        return Plan(zeros, {}, measured.tied, patterns=patterns)
    times = None
    if recipe.target_speedup:
        times = layer_times(model, layers, typical_feeds(data)[:1], recipe.threads)
    elif recipe.pattern == "auto" or recipe.budget == "flops":  # how the layers compare is enough
        times = Times.of(dense_costs(model, layers, typical_feeds(data)[:1]))
    at = partial(_plan, layers, recipe, measured, times)

    if recipe.size_limit is not None:
        return _of_size(model, layers, at, recipe)
    if recipe.speedup is not None and measured.sensitivity is None:
        return _least(at, lambda plan: _time(layers, recipe, times, plan), 1 / recipe.speedup, recipe)
    return at(recipe.target_sparsity)


def _plan(
    layers: Sequence[Layer], recipe: Recipe, measured: Measured, times: Times | None, sparsity: float
) -> Plan:
    found, curves = measured.sensitivity, curves_of(layers, recipe, measured, sparsity)
    if found is None:
        facts = {name: replace(item, highest=highest(sparsity)) for name, item in measured.facts.items()}
        zeros = counts(RULES[recipe.allocation], facts, _zeros(layers, sparsity))
        return Plan(_fit_pattern(zeros, layers, recipe, sparsity), {}, measured.tied, measured.cached)
    sensitivity = {name: values[0] for name, values in found.output.items() if values}
    unit, amount = None, float(_zeros(layers, sparsity))
    if recipe.budget == "flops":
        assert times is not None
        unit = {layer.name: times.multiplications[layer.name] / layer.size for layer in layers}
        amount = sparsity * sum(times.multiplications.values())
    zeros = allocate(curves, amount, unit)
    plan = Plan(zeros, sensitivity, measured.tied, measured.cached)
    if recipe.pattern != "auto" and recipe.speedup is None:
        if recipe.allocation == "sensitivity":
            zeros = level(curves, zeros, LEVELLED, unit)
        costs = {name: curve.cost[0] for name, curve in curves.items()}
        return replace(plan, zeros=_fit_pattern(zeros, layers, recipe, sparsity, costs))
    assert times is not None
    chosen = _chosen(layers, recipe, measured, curves, times, zeros)
    if recipe.speedup is not None:
        zeros = dict.fromkeys(zeros, 0)  # what no kernel speeds up need not lose anything
    patterns = {name: choice.pattern for name, choice in chosen.items()} if recipe.pattern == "auto" else {}
    relative = {name: choice.time for name, choice in chosen.items()}
    return replace(
        plan,
        zeros=zeros | {name: choice.zeros for name, choice in chosen.items()},
        patterns=patterns,
        speedup=times.speedup(relative) if recipe.speedup is not None else None,
    )


def curves_of(
    layers: Sequence[Layer], recipe: Recipe, measured: Measured, sparsity: float
) -> dict[str, Curve]:
    """Return the cost curves that the allocation goes by; none for rules."""
    found = measured.sensitivity
    if found is None:
        return {}
    by = found.output if recipe.allocation == "sensitivity" else found.error
    weights = measured.guide.costs
    return {
        layer.name: Curve(
            layer.size,
            found.levels,
            tuple(weights.get(layer.name, 1.0) * cost for cost in by[layer.name]),
            highest(sparsity),
        )
        for layer in layers
    }


def highest(sparsity: float) -> float:
    """Return the largest sparsity that a layer may get when the whole model has ``sparsity``."""
    return HIGHEST if sparsity <= 0.95 else 1.0 - (1.0 - sparsity) / 4


def _zeros(layers: Sequence[Layer], sparsity: float) -> int:
    return round(sparsity * sum(layer.size for layer in layers))


def _of_size(model: Model, layers: Sequence[Layer], at: Callable[[float], Plan], recipe: Recipe) -> Plan:
    """Return the plan with the least sparsity whose file is small enough, as tried with other zeros."""
    limit = recipe.size_limit
    assert limit is not None
    missed = 0.0  # bytes that the rough count misses
    best: Plan | None = None

    def rough(plan: Plan) -> float:
        return rough_bytes(model, layers, plan.zeros, recipe) + missed

    for _ in range(_TRIALS):
        plan = _least(at, rough, limit, recipe)
        over = tried_bytes(model, layers, plan.zeros, recipe) - limit * (1 - _SPARE)
        if over <= 0:
            best = plan
        if -_NEAR * limit <= over <= 0 or not any(plan.zeros.values()):
            break
        missed += over
    return best or plan


def _least(
    at: Callable[[float], Plan], amount: Callable[[Plan], float], limit: float, recipe: Recipe
) -> Plan:
    """Return the plan with the least sparsity whose ``amount`` (bytes, or share of time) is in the limit."""
    low, high = 0.0, float(GRID[-1])
    if amount(at(high)) > limit:
        raise ModelError(*_unreachable(recipe, amount(at(high))))
    if amount(at(low)) <= limit:
        return at(low)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if amount(at(middle)) <= limit else (middle, high)
    return at(high)


def _unreachable(recipe: Recipe, best: float) -> tuple[str, str]:
    if recipe.size_limit is not None:
        return (
            f"--target-size {recipe.target_size}: with 99 % of the prunable weights gone the file would "
            f"still take about {best / 1e6:.3g} MB",
            "onnxprune inspect says what is left alone, and why; --values fp16 halves what is kept",
        )
    return (
        f"--target-speedup {recipe.target_speedup}: by the table of the kernels the model gets at most "
        f"{1 / best:.3g} times faster",
        "blocks gain more: --pattern auto, or block:16x1",
    )


def _time(layers: Sequence[Layer], recipe: Recipe, times: Times | None, plan: Plan) -> float:
    """Return the predicted time of the model as a share of the dense one."""
    assert times is not None
    pattern = Pattern.parse(recipe.structure)
    spent = {}
    for layer in layers:
        at = np.array([plan.zeros[layer.name] / layer.size])
        spent[layer.name] = times.layers[layer.name] * float(relative_times(layer, pattern, at)[0])
    return 1 / times.speedup(spent)


def _chosen(
    layers: Sequence[Layer],
    recipe: Recipe,
    measured: Measured,
    curves: Mapping[str, Curve],
    times: Times,
    zeros: Mapping[str, int],
) -> dict[str, Choice]:
    """Choose for the speed asked for, or else for the damage that ``zeros`` do without a pattern."""
    choices = _choices(layers, recipe, measured, curves, times)
    if recipe.speedup is None:
        return fastest(choices, sum(curves[name].at(zeros[name]) for name in choices))
    whole = sum(choice.time for choice in choices.values())
    # What must be left of the time of these layers so that the whole model is as fast as asked for
    left = times.whole / recipe.speedup - (times.whole - whole)
    least = sum(choice.time * float(choice.relative.min()) for choice in choices.values())
    if left < least * (1 - 1e-9):
        raise ModelError(*_unreachable(recipe, (times.whole - whole + least) / times.whole))
    return least_damage(choices, whole / left)


def _choices(
    layers: Sequence[Layer],
    recipe: Recipe,
    measured: Measured,
    curves: Mapping[str, Curve],
    times: Times,
) -> dict[str, Choices]:
    """Return what each layer may become; those that no kernel speeds up are left out.

    How far a pattern moves the model's output is not measured: it is what the layer alone moves it by without
    a pattern, times the ratio of the layer's own errors. Both are of second order in what changes.
    """
    found = measured.sensitivity
    assert found is not None
    patterns = CANDIDATES if recipe.pattern == "auto" else (Pattern.parse(recipe.structure),)
    choices = {}
    for layer in layers:
        relative = np.array([relative_times(layer, pattern, GRID) for pattern in patterns])
        if layer.kind == "embedding" or relative.min() == 1 or not times.layers[layer.name]:
            continue
        plain, curve = np.asarray(found.error[layer.name]), curves[layer.name]
        costs = [curve.on_grid()]
        for pattern in patterns[1:]:
            ratio = np.asarray(found.others[pattern][layer.name]) / np.maximum(plain, 1e-12)
            costs.append(replace(curve, cost=tuple((ratio * curve.cost).tolist())).on_grid())
        choices[layer.name] = Choices(
            layer.size, times.layers[layer.name], patterns, np.array(costs), relative
        )
    return choices


def _fit_pattern(
    zeros: dict[str, int],
    layers: Sequence[Layer],
    recipe: Recipe,
    sparsity: float,
    costs: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Make the counts ones that the pattern can have. N:M is all or nothing: the cheapest layers get it."""
    pattern = Pattern.parse(recipe.structure)
    if pattern.kind != "nm":
        return zeros
    full = {layer.name: pattern.zeros(layer.view.matrix, 1.0) for layer in layers}
    order = sorted(full, key=lambda name: (costs or {}).get(name, 0.0) / max(full[name], 1))
    budget, fitted = _zeros(layers, sparsity), dict.fromkeys(zeros, 0)
    for name in order:
        # Stop at the nearest total; with the default sparsity every layer is within it.
        if sum(fitted.values()) + full[name] / 2 <= budget:
            fitted[name] = full[name]
    return fitted
