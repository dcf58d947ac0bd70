"""Gradients of the dense model's weights, for the criteria that need them. torch is imported only then.

Without labels the loss is the model's own uncertainty: the negative log-likelihood of answers drawn from it
(:func:`onnxprune.finetune.gradients.own_answers`). With ``--labels`` it is the loss on them, so that what
matters for the user's own data and task is what is kept.

They are kept in the user's cache: all criteria that need gradients need the same ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune import digest
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import DataError, ModelError, ResourceError
from onnxprune.files import arrays
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.recipe.mixture import CRITERIA, GRADIENT_CRITERIA, Mixture
from onnxprune.scoring.evidence import Slopes

# Samples go one by one, each a run forward and back.
MOST_SAMPLES = 64
_WAY_OUT = f"criteria without gradients: {', '.join(c for c in CRITERIA if c not in GRADIENT_CRITERIA)}"


def check_torch(recipe: Recipe) -> None:
    """Raise ResourceError when the criterion needs torch and it is missing: before the long work."""
    needs = Mixture.parse(recipe.criterion).gradients
    if needs and importlib.util.find_spec("torch") is None:
        raise ResourceError(
            f"--criterion {recipe.criterion}: {needs[0]} needs torch, which is not installed",
            f"pip install torch; {_WAY_OUT}",
        )


def collect_slopes(
    model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe, progress: Progress
) -> dict[str, Slopes]:
    """Return the gradients of every layer's weight but tables, over at most :data:`MOST_SAMPLES` samples.

    Args:
        model: the dense model.
        layers: whose weights are asked for.
        data: calibration samples, with labels when the recipe names them.
        recipe: nothing is done unless its criterion needs gradients.
        progress: told about the stage.

    Returns:
        Weight name -> means over samples in the layer's matrix view; nothing when none are needed.

    Raises:
        DataError: when the samples cannot be told apart, or the labels fit no output.
        ModelError: when torch cannot run the model, or a gradient is not finite.
        ResourceError: when torch is missing.
    """
    needs = Mixture.parse(recipe.criterion).gradients
    wanted = [layer for layer in layers if layer.kind != "embedding"]
    if not needs or not wanted:
        return {}
    check_torch(recipe)
    from onnxprune.finetune.slopes import slopes

    _check_samples(needs[0], data)
    kept = _cache_name(model, wanted, data, recipe)
    if recipe.cache and (known := _known(kept, wanted)) is not None:
        return known
    progress.stage("collecting gradients")
    names = [layer.name for layer in wanted]
    try:
        found = slopes(
            model, names, data, MOST_SAMPLES, key=recipe.labels, seed=recipe.seed, threads=recipe.threads
        )
    except ModelError as error:
        raise ModelError(
            f"--criterion {recipe.criterion}: {needs[0]} needs gradients, but: {error}",
            _WAY_OUT,
        ) from error
    sums = (found.first, found.second, found.taylor)
    means = {
        layer.name: Slopes(*(_mean(layer, part[layer.name], found.samples) for part in sums))
        for layer in wanted
    }
    if recipe.cache:
        arrays.save(kept, {f"{part} {name}": getattr(means[name], part) for name in means for part in _PARTS})
    return means


_PARTS = tuple(field.name for field in dataclasses.fields(Slopes))


def _cache_name(model: Model, layers: Sequence[Layer], data: CalibrationData, recipe: Recipe) -> str:
    """Return the name of the gradients in the user's cache: of all that they depend on."""
    settings = ([layer.name for layer in layers], recipe.labels, recipe.seed, MOST_SAMPLES)
    parts = (digest.of_program(), digest.of_machine(recipe.threads), digest.of_model(model), data.digest())
    return f"gradients-{hashlib.sha256(repr((*parts, settings)).encode()).hexdigest()[:32]}"


def _known(name: str, layers: Sequence[Layer]) -> dict[str, Slopes] | None:
    """Return what is kept of ``layers``; None when there is nothing, or of other shapes."""
    found = arrays.load(name) or {}
    wanted = {f"{part} {layer.name}": layer.view.matrix for layer in layers for part in _PARTS}
    if {key: array.shape for key, array in found.items()} != wanted:
        return None
    return {layer.name: Slopes(*(found[f"{part} {layer.name}"] for part in _PARTS)) for layer in layers}


def _mean(layer: Layer, sums: NDArray[np.float64], samples: int) -> NDArray[np.float32]:
    if not np.isfinite(sums).all():
        raise ModelError(
            f"gradients of weight {layer.name!r} are NaN or infinite on the calibration data",
            f"check the data; {_WAY_OUT}",
        )
    return np.ascontiguousarray(layer.view.to_matrix(sums / max(samples, 1)), dtype=np.float32)


def _check_samples(criterion: str, data: CalibrationData) -> None:
    """Gradients are those of single samples, so the batches must come apart."""
    if data.fixed is not None and data.fixed > 1:
        raise DataError(
            f"{criterion} needs gradients of single samples, the model takes {data.fixed} at once",
            f"export it with a dynamic batch; {_WAY_OUT}",
        )
    shared = [name for name in data.batches[0] if data.batched is not None and name not in data.batched]
    if shared:
        raise DataError(
            f"{criterion} needs gradients of single samples, input {shared[0]!r} has no batch axis",
            _WAY_OUT,
        )
