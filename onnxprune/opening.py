"""What every run on a model begins with: its settings, its layers, its samples."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.data import CalibrationData, from_iterable, load_data
from onnxprune.errors import ModelError, UsageError
from onnxprune.layers import Layer, Skip, find_layers, why_skipped
from onnxprune.model import Model
from onnxprune.passes.fold_affine import fold_affine
from onnxprune.passes.fold_moved import fold_moved, needs_fold_moved
from onnxprune.passes.fold_recurrent import fold_recurrent, needs_fold_recurrent
from onnxprune.passes.own_constants import needs_own_constants, own_constants
from onnxprune.passes.own_parameters import own_parameters
from onnxprune.recipe import Recipe
from onnxprune.recipe.recipe import known_names
from onnxprune.storage.edit import raise_ir_version

# Samples for the final comparison: on top of --samples when the source has them, else this share of them.
EXTRA_SAMPLES = 64
HELD_OUT = 1 / 8
# A search has two sets of them, one that chooses: on top --samples for each, else this share for both.
SEARCH_HELD_OUT = 1 / 2


def recipe_with(recipe: Recipe | None, options: dict[str, Any], data: Any) -> tuple[Recipe, Any]:
    """Return the recipe with ``options``, and the data unless the recipe names them.

    Raises:
        UsageError: for an option that does not exist, or a wrong value.
    """
    recipe = dataclasses.replace(recipe or Recipe(), **_options(options))
    if isinstance(data, str | Path):
        return dataclasses.replace(recipe, data=str(data)), None
    return recipe, data


def _options(options: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(Recipe)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(f"unknown options {', '.join(unknown)}", known_names(unknown[0], known))
    values = {
        key: os.fspath(v)
        if isinstance(v, os.PathLike)
        else v.tolist()
        if isinstance(v, np.generic | np.ndarray)
        else v
        for key, v in options.items()
    }
    checked = Recipe.from_dict(values)  # a wrong type is an error here, not deep inside
    return {key: getattr(checked, key) for key in options}


def separated(dense: Model, recipe: Recipe) -> Model:
    """Return the model with biases of its own for each layer, where equal ones are stored once.

    Structured pruning wants that of all vectors and states: what two layers read ties their units. Kernels
    also want no scales and shifts behind convolutions, which would keep a layer from being one node.
    """
    dense = folded(dense, recipe)
    kernels, units = recipe.target == "cpu", recipe.structured is not None
    convolutions = any(node.op_type == "Conv" for node in dense.graph.node)
    if not units and not (kernels and (needs_own_constants(dense) or convolutions)):
        return dense
    changed = dense.copy()
    count = own_parameters(changed) if units else own_constants(changed)
    if kernels:
        count += fold_affine(changed)
    if not count:
        return dense
    raise_ir_version(changed, 4, set())  # before it, each new constant would have to be an input as well
    changed.reindex()
    return changed


def folded(dense: Model, recipe: Recipe) -> Model:
    """Return the model with weights as its nodes read them, where its graph computes or moves them first."""
    if not needs_fold_recurrent(dense) and not needs_fold_moved(dense):
        return dense
    changed = dense.copy()
    if not fold(changed, recipe):
        return dense
    raise_ir_version(changed, 4, set())
    changed.reindex()
    return changed


def fold(model: Model, recipe: Recipe) -> int:
    """Do what :func:`folded` returns to ``model`` itself; return the number of weights that changed."""
    count = fold_recurrent(model, recipe.include, recipe.exclude)
    return count + fold_moved(model, recipe.include, recipe.exclude)


def find_prunable(dense: Model, recipe: Recipe) -> tuple[tuple[Layer, ...], tuple[Skip, ...]]:
    """Return the layers that the recipe prunes, and what is left alone.

    Raises:
        ModelError: when there is none, or the model is packed already.
    """
    _refuse_packed(dense)
    layers, skips = find_layers(
        dense, include=recipe.include, exclude=recipe.exclude, min_size=recipe.min_size
    )
    if not layers and recipe.structured is None:  # an Einsum has units, but is no matrix
        raise ModelError(f"{dense.name}: nothing to prune", _why_nothing(dense, skips))
    return layers, skips


def _refuse_packed(model: Model) -> None:
    if any(node.domain == "onnxprune" for node in model.graph.node):
        raise ModelError(
            f"{model.name} is packed by onnxprune already", "onnxprune export --format dense undoes it"
        )


def _why_nothing(model: Model, skips: tuple[Skip, ...]) -> str:
    if model.graph.sparse_initializer:
        return "its weights are sparse initializers: onnxprune export --format dense undoes it"
    reasons = why_skipped(skips)
    if any(node.op_type == "If" for node in model.graph.node) and "subgraph" in reasons:
        reasons += "; onnxprune export --fix INPUT=VALUE keeps what an If runs for that value"
    if "quantized" in reasons:
        reasons += (
            "; prune the float model with --format dense and quantize the result, which keeps the zeros"
        )
    found = f"left alone: {reasons}" if reasons else "the model has no weight matrices"
    functions = {(function.domain, function.name) for function in model.proto.functions}
    if any((node.domain, node.op_type) in functions for node in model.graph.node):
        found += (
            "; local functions may hold some: "
            "onnx.save(onnx.inliner.inline_local_functions(onnx.load(IN)), OUT) puts them into the graph"
        )
    return found


def read_data(model: Model, recipe: Recipe, data: Any) -> tuple[CalibrationData, CalibrationData]:
    """Return (calibration, held-out) samples: held-out ones come on top when the source has more."""
    extra = 2 * recipe.samples if recipe.searches else EXTRA_SAMPLES
    least = SEARCH_HELD_OUT if recipe.searches else HELD_OUT
    wide = dataclasses.replace(recipe, samples=recipe.samples + extra)
    found = load_data(model, wide) if data is None else from_iterable(model, data, wide)
    spare = found.samples - recipe.samples
    share = spare / found.samples if spare > 0 else HELD_OUT
    share = max(share, least) if recipe.searches else share
    rest, held_out = found.split(share, recipe.seed)
    return rest, held_out if held_out.batches else rest  # a single sample has to serve for both


def doubts(calibration: CalibrationData, held_out: CalibrationData) -> list[str]:
    """Return a warning where the data that :func:`read_data` returned are the same twice, else nothing."""
    if held_out is not calibration:
        return []
    count = calibration.samples
    found = "one sample" if count == 1 else f"one batch of {count} samples"
    return [
        f"NOTHING TO COMPARE ON: the data hold {found}, which served to prune as well, so the agreement and "
        "the accuracy mean little; 64 to 256 samples are enough"
    ]
