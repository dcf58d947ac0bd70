"""Changes of the inputs: more questions to ask the teacher, out of few samples.

The teacher answers for every changed input anew, so a change need not keep what a sample shows: mixtures
of two samples teach as well (Beyer et al., "Knowledge distillation: A good teacher is patient and
consistent", 2022). Without them a pruned model learns little from samples that it was fitted to already.
Labels answer for the samples as they are: with labels, only changes that leave them true are made unasked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.errors import UsageError

SHIFT = 1 / 8  # of the width and the height
SMALLEST_CROP = 0.5  # of the area
STRETCH = 0.15  # of the width
CONTRAST, TINT = 0.2, 0.15  # spread of the logarithm; of the image's standard deviation, for each channel
MOVING = ("flip", "shift", "crop", "stretch")
CHANNELS = (1, 3, 4)

Tensors = dict[str, Tensor]
Change = Callable[[Tensors, torch.Generator], Tensors]


def make(names: tuple[str, ...], feeds: Tensors, labels: Tensor | None = None) -> Change | None:
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
        images = [value for value in feeds.values() if is_image(value)]
        square = all(_square(value) for value in images)
        fitting = {"mix"} if square else set()
        fitting |= {"shift", "tone", "flip" if square else "stretch"} if images else set()
        chosen |= fitting if labels is None else fitting & _harmless(labels)
    if not chosen - {"auto"}:
        return None

    def change(feeds: Tensors, random: torch.Generator) -> Tensors:
        changed = {name: moved(value, chosen, random) for name, value in feeds.items()}
        if "tone" in chosen:
            changed = {name: toned(value, random) for name, value in changed.items()}
        return mixed(changed, random) if "mix" in chosen else changed

    return change


def _harmless(labels: Tensor) -> set[str]:
    """Return the changes that leave labels true, whatever they mean."""
    return {"shift", "stretch", "tone"} if labels.ndim == 1 and not labels.is_floating_point() else set()


def _check_labels(chosen: set[str], labels: Tensor) -> None:
    if "mix" in chosen:
        raise UsageError("--augment mix blends samples, and a blend has no label", "leave one of the two out")
    moving = sorted(chosen & set(MOVING))
    if moving and labels.ndim > 2:
        raise UsageError(
            f"--augment {moving[0]} moves what the image shows, labels of shape {list(labels.shape)} stay",
            "leave one of the two out",
        )


def is_image(value: Tensor) -> bool:
    """True for float tensors (batch, channels, height, width) or (batch, height, width, channels)."""
    if value.ndim != 4 or not value.is_floating_point():
        return False
    return value.shape[1] in CHANNELS or value.shape[3] in CHANNELS


def _square(value: Tensor) -> bool:
    size = value.shape[2:] if value.shape[1] in CHANNELS else value.shape[1:3]
    return size[0] == size[1]


def moved(value: Tensor, names: set[str], random: torch.Generator) -> Tensor:
    """Return ``value`` with each image flipped, shifted, stretched or cropped; other tensors as they are."""
    if not is_image(value) or names.isdisjoint(MOVING):
        return value
    last = value.shape[1] not in CHANNELS
    image = value.movedim(3, 1) if last else value
    count = len(image)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    scale = uniform(SMALLEST_CROP, 1.0).sqrt() if "crop" in names else torch.ones(count)
    shift = 2 * SHIFT if "shift" in names else 0.0
    x, y = ((1 - scale) * uniform(-1, 1) + shift * uniform(-1, 1) for _ in range(2))
    mirrored = uniform(0, 1) < (0.5 if "flip" in names else 0.0)
    wide = scale * (STRETCH * uniform(-1, 1)).exp() if "stretch" in names else scale
    across = torch.where(mirrored, -wide, wide)
    zero = torch.zeros(count)
    maps = torch.stack([torch.stack([across, zero, x], 1), torch.stack([zero, scale, y], 1)], 1)
    grid = F.affine_grid(maps.to(image.dtype), list(image.shape), align_corners=False)
    changed = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    return changed.movedim(1, 3).contiguous() if last else changed


def toned(value: Tensor, random: torch.Generator) -> Tensor:
    """Return ``value`` with the contrast and the colours of each image changed; other tensors as they are."""
    if not is_image(value):
        return value
    channels = 1 if value.shape[1] in CHANNELS else 3
    around = tuple(axis for axis in (1, 2, 3) if axis != channels)
    shape = [len(value), 1, 1, 1]
    tints = [*shape]
    tints[channels] = value.shape[channels]
    contrast = (CONTRAST * (2 * torch.rand(shape, generator=random) - 1)).exp().to(value.dtype)
    tint = (TINT * (2 * torch.rand(tints, generator=random) - 1)).to(value.dtype)
    mean = value.mean(around, keepdim=True)
    spread = (value - mean).square().mean((1, 2, 3), keepdim=True).sqrt()
    return mean + contrast * (value - mean) + tint * spread


def mixed(feeds: Tensors, random: torch.Generator) -> Tensors:
    """Blend each sample with another of the batch; inputs without a common batch axis stay as they are.

    Float inputs become ``a x + (1 - a) y`` with ``a`` drawn from 0 to 1 for each sample, but masks (zeros
    and ones beside other inputs) stay as they are: half a token is no token. When there are
    integer inputs of rank 2, such as token ids and masks, all of their shape get a span from the other one.
    """
    rows = {len(value) for value in feeds.values() if value.ndim}
    if len(rows) != 1 or any(not value.ndim for value in feeds.values()):
        return feeds
    count = rows.pop()
    other = torch.randperm(count, generator=random)
    ids = [v for v in feeds.values() if v.ndim == 2 and not v.is_floating_point()]
    if ids:
        shape = ids[0].shape
        position = torch.arange(shape[1])
        ends = torch.rand(count, 2, generator=random).sort(1).values * shape[1]
        span = (position >= ends[:, :1]) & (position < ends[:, 1:])
        return {n: torch.where(span, v[other], v) if v.shape == shape else v for n, v in feeds.items()}
    share = torch.rand(count, generator=random)
    floats = {name for name, value in feeds.items() if value.is_floating_point()}
    masks = {name for name in floats if ((feeds[name] == 0) | (feeds[name] == 1)).all()}
    chosen = floats - masks or floats

    def blend(name: str, value: Tensor) -> Tensor:
        if name not in chosen:
            return value
        a = share.view(-1, *[1] * (value.ndim - 1)).to(value.dtype)
        return a * value + (1 - a) * value[other]

    return {name: blend(name, value) for name, value in feeds.items()}
