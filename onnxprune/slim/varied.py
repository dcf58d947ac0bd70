"""One sample with other sizes: a batch of 1 and an axis of size 1 look alike on one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from onnxprune.calibration.inputs import InputSpec, input_specs
from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.structure.sample import sample

_MOST = 6  # sizes that are varied
Sizes = dict[str, tuple[int, ...]]


def varied(model: Model, feeds: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the feeds with one free size doubled, for each; the model may not run on them.

    Args:
        model: the model.
        feeds: input name -> array.
    """
    specs = [spec for spec in input_specs(model) if spec.name in feeds]
    free = dict.fromkeys(key for spec in specs for key in _keys(spec) if key)
    for wanted in list(free)[:_MOST]:
        found = dict(feeds)
        for spec in specs:
            for axis, key in enumerate(_keys(spec)):
                if key == wanted and axis < np.ndim(found[spec.name]):
                    found[spec.name] = np.concatenate([found[spec.name]] * 2, axis)
        yield found


def _keys(spec: InputSpec) -> list[str]:
    """Return what the size of each axis is called, empty where it is fixed.

    Without names, first axes are taken for the batch and so for one size.
    """
    names = [f"{spec.name}:{axis}" if axis else "batch?" for axis in range(len(spec.shape))]
    return ["" if isinstance(dim, int) else dim or name for dim, name in zip(spec.shape, names, strict=True)]


def varied_samples(
    model: Model, feeds: Mapping[str, Any], threads: int | None = None
) -> tuple[list[Mapping[str, Any]], list[Sizes]]:
    """Return the feeds with other sizes that the model runs on, and the shapes of all values on each."""
    feeding: list[Mapping[str, Any]] = []
    shapes: list[Sizes] = []
    for other in varied(model, feeds):
        try:
            found, _ = sample(model, other, threads)
        except ModelError:
            continue  # such as longer than its table of positions
        feeding.append(other)
        shapes.append(found)
    return feeding, shapes
