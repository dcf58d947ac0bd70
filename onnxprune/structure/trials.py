"""Other inputs to check a smaller model on: of other sizes, and of other magnitudes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from onnxprune.model import Model

_MAGNITUDES = (1.0, 1e2, 1e5, 1e-2)


def resized(model: Model, feeds: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield feeds in which dimensions that may have any size have another; the model may refuse them.

    All of them change first, then the first axes alone: a batch is free more often than a length really is.
    """
    free = _free(model, feeds)
    batch = {places: 2 if size == 3 else 3 for places, (size, first) in free.items() if first}
    rest = {places: size for places, (size, first) in free.items() if not first}
    for times, more in ((1, 1), (2, 0), (0.5, 0)) if rest else ():
        yield _resize(feeds, batch | {places: int(size * times) + more for places, size in rest.items()})
    if batch:
        yield _resize(feeds, batch)


_Places = tuple[tuple[str, int], ...]  # inputs and their axes


def _free(model: Model, feeds: Mapping[str, Any]) -> dict[_Places, tuple[int, bool]]:
    """Return what has one free size -> that size, and whether it is that of first axes."""
    alike = defaultdict[tuple[str, int, bool], list[tuple[str, int]]](list)
    for name, value in model.index.inputs.items():
        shape = np.shape(feeds[name]) if name in feeds else ()
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value <= 0 and axis < len(shape) and shape[axis]:
                unnamed = axis == 0 and not dim.dim_param  # dimensions without a name: alike if of one size
                alike[dim.dim_param, shape[axis], unnamed].append((name, axis))
    return {
        tuple(places): (size, any(axis == 0 for _, axis in places)) for (_, size, _), places in alike.items()
    }


def _resize(feeds: Mapping[str, Any], sizes: Mapping[_Places, int]) -> dict[str, Any]:
    result = dict(feeds)
    for places, size in sizes.items():
        for name, axis in places:
            array = np.asarray(result[name])
            result[name] = np.take(array, np.arange(size) % array.shape[axis], axis)
    return result


def of_other_magnitude(feeds: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield feeds with random numbers, small to large, in place of floats."""
    rng = np.random.default_rng(0)
    for magnitude in _MAGNITUDES:
        yield {
            name: np.asarray(rng.standard_normal(value.shape) * magnitude, value.dtype)
            if isinstance(value, np.ndarray) and value.dtype.kind == "f"
            else value
            for name, value in feeds.items()
        }
