"""The weights that training changed, without their zeros: what it takes to have a trained model again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.layers.layer import FLOATS
from onnxprune.model import Model

Array = NDArray[Any]


def changes(base: Model, trained: Model) -> dict[str, Array]:
    """Return what differs between two models of one graph.

    Returns:
        Two arrays for each weight of floats whose bits differ: ``NAME.kept``, a bit for each element that has
        any bit set, and ``NAME.bits``, those elements as unsigned integers.
    """
    found: dict[str, Array] = {}
    for name in trained.index.tensors:
        if trained.index.tensors[name].data_type not in FLOATS:
            continue
        bits = _bits(trained.array(name))
        if not np.array_equal(bits, _bits(base.array(name))):
            kept = bits != 0
            found[f"{name}.kept"], found[f"{name}.bits"] = np.packbits(kept), bits[kept]
    return found


def with_changes(base: Model, found: Mapping[str, Array]) -> Model | None:
    """Return a copy of ``base`` with what :func:`changes` found; None when that is of another model."""
    model = base.copy()
    for key in found:
        name, _, part = key.rpartition(".")
        if part != "kept":
            continue
        values, packed = found.get(f"{name}.bits"), found[key]
        if name not in model.index.tensors or values is None:
            return None
        old = model.array(name)
        bits = np.zeros_like(_bits(old))
        if packed.dtype != np.uint8 or len(packed) != -(-old.size // 8) or values.dtype != bits.dtype:
            return None
        kept = np.unpackbits(packed, count=old.size).astype(bool)
        if int(kept.sum()) != len(values):
            return None
        bits[kept] = values
        model.set_array(name, bits.view(old.dtype).reshape(old.shape))
    return model


def _bits(array: Array) -> Array:
    """Return the elements as unsigned integers (size,): NaN is equal to itself, any type can be written."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(f"u{flat.dtype.itemsize}")
