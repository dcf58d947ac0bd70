"""Changes of the inputs: more questions to ask the dense model, out of few samples.

The dense model answers for every changed input anew, so a change need not keep what a sample shows: mixtures
of two samples teach as well (Beyer et al., "Knowledge distillation: A good teacher is patient and
consistent", 2022). Without them a pruned model learns little from samples that it was fitted to already.
Labels answer for the samples as they are: with labels, only changes that leave them true are made unasked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.resample import mirrored_into, resampled
from onnxprune.errors import UsageError

SHIFT = 1 / 8  # of the width and the height
SMALLEST_CROP = 0.5  # of the area
STRETCH = 0.15  # of the width
CONTRAST, TINT = 0.2, 0.15  # spread of the logarithm; of the image's standard deviation, for each channel
MOVING = ("flip", "shift", "crop", "stretch")
CHANNELS = (1, 3, 4)

Array = NDArray[Any]
Feed = Mapping[str, Array]
Change = Callable[[Feed, np.random.Generator], Feed]


def make(names: tuple[str, ...], feeds: Feed, labels: Array | None = None) -> Change | None:
    """Return a function that changes a batch of inputs; None for none.

    Args:
        names: ``flip`` mirrors half of the images left to right, ``shift`` moves them by up to
            :data:`SHIFT`, ``stretch`` makes them wider or narrower, ``tone`` changes contrast and colours,
            ``crop`` takes a random part and enlarges it, ``mix`` blends two samples (token ids: takes a span
            from another sample); ``auto``: shift, stretch and tone for wide images, which may show text, mix
            for everything else, and shift, flip and tone for square images; ``none``. No crops unless asked
            for: a pruned model has no room for what the data does not hold.
        feeds: one batch, to see what the inputs are.
        labels: of that batch. With class numbers, one a sample, ``auto`` neither mixes nor flips (a mirrored
            image may be of another class); with other labels it is nothing.

    Raises:
        UsageError: for mix with labels, and for changes of place with labels that are maps.
    """
    chosen = set(names) - {"none"}
    if labels is not None:
        _check_labels(chosen, labels)
    if "auto" in chosen:
        chosen = fitting(feeds, labels)
    if not chosen:
        return None

    def change(feeds: Feed, random: np.random.Generator) -> Feed:
        seed = int(random.integers(2**63))  # images of one sample, such as a pair of them, are changed alike
        images = images_of(feeds)
        masks = _masks(feeds, images)
        changed: Feed = {
            n: moved(value, chosen, np.random.default_rng(seed)) if n in images else value
            for n, value in feeds.items()
        }
        changed = {n: np.round(value) if n in masks else value for n, value in changed.items()}
        if "tone" in chosen:
            changed = {
                n: toned(value, np.random.default_rng([seed, 1])) if n in images - masks else value
                for n, value in changed.items()
            }
        return mixed(changed, random) if "mix" in chosen else changed

    return change


def fitting(feeds: Feed, labels: Array | None = None) -> set[str]:
    """Return what ``auto`` stands for; the arguments are those of :func:`make`."""
    images = [feeds[name] for name in sorted(images_of(feeds))]
    square = all(_square(value) for value in images)
    chosen = {"mix"} if square else set()
    chosen |= {"shift", "tone", "flip" if square else "stretch"} if images else set()
    return chosen if labels is None else chosen & _harmless(labels)


def _harmless(labels: Array) -> set[str]:
    """Return the changes that leave labels true, whatever they mean."""
    return {"shift", "stretch", "tone"} if labels.ndim == 1 and labels.dtype.kind != "f" else set()


def _check_labels(chosen: set[str], labels: Array) -> None:
    if "mix" in chosen:
        raise UsageError("--augment mix blends samples, and a blend has no label", "leave one of the two out")
    moving = sorted(chosen & set(MOVING))
    if moving and labels.ndim > 2:
        raise UsageError(
            f"--augment {moving[0]} moves what the image shows, labels of shape {list(labels.shape)} stay",
            "leave one of the two out",
        )


def _masks(feeds: Feed, names: set[str]) -> set[str]:
    """Return those of the inputs ``names`` that hold zeros and ones only; none when all do."""
    found = {name for name in names if ((feeds[name] == 0) | (feeds[name] == 1)).all()}
    return found if found != names else set()


def images_of(feeds: Feed) -> set[str]:
    """Return the names of the images: no caches of keys and values, no masks but those of an image."""
    found = {n for n, v in feeds.items() if is_image(v) and not re.search("past|cache", n.lower())}
    masks = {name for name in found if "mask" in name.lower()}
    sizes = {_size(feeds[name]) for name in found - masks}
    return found - {name for name in masks if _size(feeds[name]) not in sizes}


def is_image(value: Array) -> bool:
    """True for float arrays (batch, channels, height, width) or (batch, height, width, channels)."""
    if value.ndim != 4 or value.dtype.kind != "f":
        return False
    if not value.size or not np.isfinite(value).all():
        return False
    return value.shape[1] in CHANNELS or value.shape[3] in CHANNELS


def _square(value: Array) -> bool:
    size = _size(value)
    return size[0] == size[1]


def _size(value: Array) -> tuple[int, int]:
    height, width = value.shape[2:] if value.shape[1] in CHANNELS else value.shape[1:3]
    return height, width


def moved(value: Array, names: set[str], random: np.random.Generator) -> Array:
    """Return ``value`` with each image flipped, shifted, stretched or cropped; other arrays as they are."""
    if not is_image(value) or names.isdisjoint(MOVING):
        return value
    last = value.shape[1] not in CHANNELS
    image = np.moveaxis(value, 3, 1) if last else value
    count, (height, width) = len(image), image.shape[2:]
    scale = np.sqrt(random.uniform(SMALLEST_CROP, 1.0, count)) if "crop" in names else np.ones(count)
    shift = 2 * SHIFT if "shift" in names else 0.0
    x, y = ((1 - scale) * random.uniform(-1, 1, count) + shift * random.uniform(-1, 1, count) for _ in "xy")
    across = scale * np.exp(STRETCH * random.uniform(-1, 1, count)) if "stretch" in names else scale
    if "flip" in names:
        across = np.where(random.random(count) < 0.5, -across, across)
    changed = resampled(image, 3, mirrored_into(across, x, width))
    changed = resampled(changed, 2, mirrored_into(scale, y, height))
    return np.ascontiguousarray(np.moveaxis(changed, 1, 3) if last else changed)


def toned(value: Array, random: np.random.Generator) -> Array:
    """Return ``value`` with the contrast and the colours of each image changed; other arrays as they are."""
    if not is_image(value):
        return value
    channels = 1 if value.shape[1] in CHANNELS else 3
    around = tuple(axis for axis in (1, 2, 3) if axis != channels)
    tints = [len(value), 1, 1, 1]
    tints[channels] = value.shape[channels]
    contrast = np.exp(CONTRAST * random.uniform(-1, 1, (len(value), 1, 1, 1))).astype(value.dtype)
    tint = (TINT * random.uniform(-1, 1, tints)).astype(value.dtype)
    wide = value.astype(np.promote_types(value.dtype, np.float32))  # squares of float16 overflow at 256
    mean = wide.mean(around, keepdims=True)
    spread = np.sqrt(np.square(wide - mean).mean((1, 2, 3), keepdims=True))
    limit = np.finfo(value.dtype).max
    changed: Array = np.clip(mean + contrast * (wide - mean) + tint * spread, -limit, limit).astype(
        value.dtype
    )
    return changed


def mixed(feeds: Feed, random: np.random.Generator) -> Feed:
    """Blend each sample with another of the batch; inputs without a common batch axis stay as they are.

    Float inputs become ``a x + (1 - a) y`` with ``a`` drawn from 0 to 1 for each sample, but masks (zeros
    and ones beside other inputs) stay as they are: half a token is no token. When there are
    integer inputs of rank 2, such as token ids and masks, all of their shape get a span from the other one.
    """
    rows = {len(value) for value in feeds.values() if value.ndim}
    if len(rows) != 1 or any(not value.ndim for value in feeds.values()):
        return feeds
    count = rows.pop()
    other = random.permutation(count)
    ids = [v for v in feeds.values() if v.ndim == 2 and v.dtype.kind != "f"]
    if ids:
        shape = ids[0].shape
        position = np.arange(shape[1])
        ends = np.sort(random.random((count, 2)), axis=1) * shape[1]
        span = (position >= ends[:, :1]) & (position < ends[:, 1:])
        return {n: np.where(span, v[other], v) if v.shape == shape else v for n, v in feeds.items()}
    share = random.random(count)
    floats = {name for name, value in feeds.items() if value.dtype.kind == "f"}
    chosen = floats - _masks(feeds, floats)

    def blend(name: str, value: Array) -> Array:
        if name not in chosen:
            return value
        a = share.reshape(-1, *[1] * (value.ndim - 1)).astype(value.dtype)
        found: Array = a * value + (1 - a) * value[other]
        return found

    return {name: blend(name, value) for name, value in feeds.items()}
