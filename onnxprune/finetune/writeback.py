"""Put trained weights back into the model they came from, by name; nothing else of it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.finetune.view import TorchView
from onnxprune.layers import Layer
from onnxprune.model import Model

LEAST = 2.0**-24  # what a kept weight that rounds to zero becomes: above zero in every type


def write_back(model: Model, view: TorchView, masks: Mapping[str, NDArray[np.bool_]]) -> tuple[str, ...]:
    """Set the weights of ``model`` to those of ``view``, in their stored types; return what was changed.

    Args:
        model: the model that the view was made of, changed in place.
        view: after training.
        masks: weight name -> True where a weight is kept. What is not stays exactly zero, and what is kept
            never becomes zero, also where the stored type would round it: counts and patterns stay.

    Raises:
        ModelError: when a trained weight is NaN or infinite in its stored type.
    """
    changed = []
    for name, weight in view.weights.items():
        if not weight.requires_grad:
            continue
        old = model.array(name)
        new = weight.detach().float().cpu().numpy()
        with np.errstate(over="ignore"):
            stored = new.astype(old.dtype)
        if (mask := masks.get(name)) is not None:
            stored[~mask] = 0
            stored[mask & (stored == 0)] = LEAST
        if not np.isfinite(stored.astype(np.float32)).all():
            raise ModelError(
                f"weight {name!r} became NaN or too large for {old.dtype} in training", "try a lower --lr"
            )
        if stored.tobytes() != old.tobytes():
            model.set_array(name, stored)
            changed.append(name)
    return tuple(changed)


def zero_masks(model: Model, layers: Sequence[Layer]) -> dict[str, NDArray[np.bool_]]:
    """Return, for each layer that has zeros, which weights may change: the others."""
    masks = {layer.name: np.asarray(model.array(layer.name) != 0) for layer in layers}
    return {name: mask for name, mask in masks.items() if not mask.all()}
