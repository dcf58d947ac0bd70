"""Images read at other places than they were stored at, one axis at a time, by linear interpolation.

What lies outside of an image is its mirror image, so that nothing black comes in from the edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def mirrored_into(scale: Array, shift: Array, length: int) -> NDArray[np.float64]:
    """Return where each pixel of each image is read, 0 to ``length - 1``, (images, length).

    Args:
        scale: how far apart neighbours are read, (images,), in pixels; negative mirrors the image.
        shift: of the middle, (images,), in halves of the length.
        length: pixels along the axis.
    """
    middle = (2 * np.arange(length) + 1) / length - 1  # of each pixel, in halves of the length
    place = (scale[:, None] * middle + shift[:, None] + 1) * length / 2  # 0 and length are the edges
    turned = np.mod(place, 2 * length)
    turned = np.where(turned > length, 2 * length - turned, turned)
    inside: NDArray[np.float64] = np.clip(turned - 0.5, 0, length - 1)
    return inside


def resampled(value: Array, axis: int, places: Array) -> Array:
    """Return ``value`` read at ``places`` along ``axis``, for each image others.

    Args:
        value: (images, ...), floats.
        axis: above 0.
        places: (images, length of that axis), 0 to length - 1.
    """
    shape = [1] * value.ndim
    shape[0], shape[axis] = places.shape
    below = np.floor(places).astype(np.intp)
    above = np.minimum(below + 1, value.shape[axis] - 1)
    share = (places - below).astype(value.dtype).reshape(shape)
    left = np.take_along_axis(value, below.reshape(shape), axis)
    if not share.any():
        return left
    right = np.take_along_axis(value, above.reshape(shape), axis)
    found: Array = left + share * (right - left)
    return found
