"""Put trained weights back into the model they came from, by name; nothing else of it changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.finetune.view import TorchView
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
        new = weight.detach().cpu().numpy()  # in single precision, or in double where it is stored so
        with np.errstate(over="ignore"):
            stored = new.astype(old.dtype)
        if (mask := masks.get(name)) is not None:
            stored[~mask] = 0
            stored[mask & (stored == 0)] = LEAST
        if not np.isfinite(stored.astype(new.dtype)).all():
            raise ModelError(
                f"weight {name!r} became NaN or too large for {old.dtype} in training", "try a lower --lr"
            )
        if not np.array_equal(stored, old):  # not by bytes: -0.0 is no change
            model.set_array(name, stored)
            changed.append(name)
    return tuple(changed)


def zero_masks(model: Model, names: Iterable[str]) -> dict[str, NDArray[np.bool_]]:
    """Return which values of the weights ``names`` may change: those that are not zero.

    Not only of the layers that we prune: another tool may have pruned any matrix. Vectors (biases, scales)
    often begin at zero and learn; tensors without zeros have no mask.
    """
    arrays = {name: model.array(name) for name in sorted(names)}
    masks = {name: np.asarray(array != 0) for name, array in arrays.items() if array.ndim > 1}
    return {name: mask for name, mask in masks.items() if not mask.all()}
