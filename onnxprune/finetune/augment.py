"""Light changes of images that keep what they show: more training data out of few samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.errors import UsageError

CHOICES = ("flip", "shift", "crop")
SHIFT = 1 / 8  # of the width and the height
SMALLEST_CROP = 0.5  # of the area
CHANNELS = (1, 3, 4)

Tensors = dict[str, Tensor]


def make(names: tuple[str, ...]) -> Callable[[Tensors, torch.Generator], Tensors] | None:
    """Return a function that changes every image input of a batch, or None for no names.

    Args:
        names: of :data:`CHOICES`: ``flip`` mirrors half of the images left to right, ``shift`` moves by up
            to :data:`SHIFT`, ``crop`` takes a random part (of the same shape) and enlarges it.

    Raises:
        UsageError: for another name.
    """
    unknown = [name for name in names if name not in CHOICES]
    if unknown:
        raise UsageError(f"--augment is {unknown[0]!r}, wanted some of {', '.join(CHOICES)}")
    if not names:
        return None

    def change(feeds: Tensors, random: torch.Generator) -> Tensors:
        return {name: augmented(value, names, random) for name, value in feeds.items()}

    return change


def is_image(value: Tensor) -> bool:
    """True for float tensors (batch, channels, height, width) or (batch, height, width, channels)."""
    return (
        value.ndim == 4
        and value.is_floating_point()
        and {value.shape[1], value.shape[3]} & {*CHANNELS} != set()
    )


def augmented(value: Tensor, names: tuple[str, ...], random: torch.Generator) -> Tensor:
    """Return ``value`` with each image changed by its own random map; what is no image stays as it is."""
    if not is_image(value):
        return value
    last = value.shape[1] not in CHANNELS
    image = value.movedim(3, 1) if last else value
    count = len(image)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    scale = uniform(SMALLEST_CROP, 1.0).sqrt() if "crop" in names else torch.ones(count)
    shift = SHIFT if "shift" in names else 0.0
    x, y = ((1 - scale) * uniform(-1, 1) + 2 * shift * uniform(-1, 1) for _ in range(2))
    mirror = (
        1 - 2 * (torch.rand(count, generator=random) < 0.5).float() if "flip" in names else torch.ones(count)
    )
    zero = torch.zeros(count)
    maps = torch.stack([torch.stack([scale * mirror, zero, x], 1), torch.stack([zero, scale, y], 1)], 1)
    if math.isclose(float((maps - torch.eye(2, 3)).abs().max()), 0.0):
        return value
    grid = F.affine_grid(maps.to(image.dtype), list(image.shape), align_corners=False)
    changed = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    return changed.movedim(1, 3).contiguous() if last else changed
