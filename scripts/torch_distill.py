"""Plain distillation in torch of a model that another tool made smaller: the dense one answers, no labels.

Adam, one cycle of the learning rate over the time there is, flips and shifts of images, the last weights.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHIFT, WARMUP = 1 / 8, 0.1


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of KL(teacher || student) over the rows of (N, classes) logits, in nats."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    seconds: float,
    *,
    rate: float,
    size: int,
    processor: bool,
) -> int:
    """Train ``student`` in place; return the steps made.

    Args:
        student: gives (N, classes) logits.
        teacher: likewise.
        inputs: (samples, ...), images are (samples, channels, height, width).
        seconds: of the training.
        rate: largest learning rate.
        size: samples in a batch.
        processor: the seconds are of the processor, so that other work does not count.
    """
    clock = time.process_time if processor else time.monotonic
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(student.parameters(), rate)
    begin, steps = clock(), 0
    while (progress := (clock() - begin) / seconds) < 1:
        batch = changed(inputs[torch.randint(len(inputs), (size,), generator=random)], random)
        with torch.no_grad():
            answers = teacher(batch)
        for group in optimizer.param_groups:
            group["lr"] = rate * cycle(progress)
        optimizer.zero_grad()
        divergence(student(batch), answers).backward()
        optimizer.step()
        steps += 1
    return steps


def cycle(progress: float) -> float:
    """Return the share of the learning rate at ``progress`` (0 to 1): linear warm-up, half a cosine."""
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def changed(images: Tensor, random: torch.Generator) -> Tensor:
    """Return the images, half of them mirrored, each moved by up to an eighth; other inputs as they are."""
    if images.ndim != 4:
        return images
    count, _, height, width = images.shape
    y, x = int(SHIFT * height), int(SHIFT * width)
    mirrored = torch.rand(count, 1, 1, 1, generator=random) < 0.5
    padded = F.pad(torch.where(mirrored, images.flip(3), images), (x, x, y, y), mode="reflect")
    down = torch.randint(2 * y + 1, (count,), generator=random).tolist()
    across = torch.randint(2 * x + 1, (count,), generator=random).tolist()
    parts = [
        padded[k, :, a : a + height, b : b + width] for k, (a, b) in enumerate(zip(down, across, strict=True))
    ]
    return torch.stack(parts)
