"""Remove units and let what stays make up for them.

The units are masked first: shapes stay, so the walk of :mod:`onnxprune.sequential` can carry the dense and
the masked model side by side and re-fit every layer towards the dense outputs. Removing what is masked then
changes nothing more, which is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.attention.guide import NOTHING, Guide
from onnxprune.calibration.collect import find_stages
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.progress import Progress
from onnxprune.recipe import Recipe
from onnxprune.sequential import prune_sequential
from onnxprune.solvers.prune import Method
from onnxprune.structure.groups import Structure
from onnxprune.structure.masking import Removed, mask_units


def compensated(
    dense: Model,
    smaller: Model,
    structure: Structure,
    removed: Removed,
    layers: Sequence[Layer],
    data: CalibrationData,
    recipe: Recipe,
    progress: Progress,
    changed: Iterable[str] = (),
    guide: Guide = NOTHING,
) -> Model:
    """Return ``smaller`` with the units masked and all other weights re-fitted to what the dense model does.

    Args:
        dense: the model.
        smaller: the same graph, with weights that may be zero already.
        structure: of it.
        removed: group name -> True for each unit that goes.
        layers: that may change.
        data: calibration samples.
        recipe: of the run; with ``refit`` off nothing is re-fitted.
        progress: told about each layer.
        changed: names of the weights in which ``smaller`` differs from ``dense``.
        guide: which tokens count more than others.
    """
    masked = mask_units(smaller, structure, removed)
    if not recipe.refit:
        return masked
    targets = {name for stage in find_stages(dense, layers) for name in stage.reads}
    targets |= {layer.sites[0].residual for layer in layers if layer.sites[0].residual}
    progress.stage("re-fitting what stays", len(layers))
    with ArrayStore(int(recipe.max_memory * 2**30)) as store, workers(recipe.threads):
        streams = Streams(dense, masked, data.batches, targets, store, recipe.threads, data.batched)
        streams.weights_changed(changed)
        prune_sequential(
            dense,
            masked,
            layers,
            {layer.name: 0 for layer in layers},
            streams,
            [row_mask(batch) for batch in data.batches],
            Method(damping=recipe.damping),
            seed=recipe.seed,
            guide=guide,
            support=support(dense, structure, removed),
            on_layer=lambda _: progress.advance(),
        )
    return masked


def support(model: Model, structure: Structure, removed: Removed) -> dict[str, NDArray[np.bool_]]:
    """Return weight name -> (stored shape) False where masking makes it zero."""
    found: dict[str, NDArray[np.bool_]] = {}
    for name, gone in removed.items():
        for part in (part for part in structure.group(name).parts if part.masked):
            shape = tuple(model.index.tensors[part.tensor].dims)
            kept = found.setdefault(part.tensor, np.ones(shape, dtype=bool))
            np.moveaxis(kept, part.axis, 0)[np.append(gone, False)[part.index]] = False
    return found
