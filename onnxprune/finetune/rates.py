"""Learning rates: how they go over a run, which one is best, and what each tensor makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

WARMUP = 0.1  # share of the cycle in which the learning rate rises
LOWEST = 0.01  # of the learning rate, at both ends of the cycle
# No lower ones: after 80 steps of OCR 1e-4 looks better than 3e-4, after 800 it reads 96.5 and not 97.1 %
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FIRST = 1e-3  # to be tried
# Where units went, more has to be learnt. CIFAR ResNet-20 with half of the multiplications, three rounds of
# 40 s: 76.65 % with this rate, 75.85 % with the one above (KL to the dense model on test images 0.438, 0.452)
FIRST_SMALLER = 3e-3
TRIAL = 0.1  # of the steps, for each
# CIFAR ResNet-20, held-out loss 0.551 before: after 100 steps the lowest rate looks best (0.553 against 0.560
# of 1e-3), after 300 the one that is best after 3,000 (0.554 against 0.517)
SHORTEST_TRIAL, LONGEST_TRIAL = 8, 300  # steps
FLOOR = 1.0  # a vector of zeros learns as if its values were this share of the typical weight


def cycle(progress: float) -> float:
    """Return the learning rate at ``progress`` (0 to 1): linear warm-up, then half a cosine.

    Source: Smith & Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates" (2018), with the cosine that torch's ``OneCycleLR`` uses.
    """
    if progress < WARMUP:
        return LOWEST + (1 - LOWEST) * progress / WARMUP
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * min((progress - WARMUP) / (1 - WARMUP), 1)))


def trial_steps(steps: int, affordable: float = math.inf) -> int:
    """Return the steps of a trial of one rate, in a run of ``steps`` steps that can afford ``affordable``."""
    wanted = min(max(SHORTEST_TRIAL, round(TRIAL * steps)), LONGEST_TRIAL)
    return max(SHORTEST_TRIAL, round(min(wanted, affordable)))


def best_rate(
    rates: Sequence[float], first: float, outcome: Callable[[float], T], worse: Callable[[T, T], bool]
) -> float:
    """Return the first rate, or the last of those beside it that are each surely better.

    Short trials make low rates look good: what a high rate disturbs at first, it mends later. Trials of 80
    steps of an OCR model ended at a held-out loss of 0.101 with 1e-4 and 0.112 with 3e-4, runs of 800 at
    0.107 and 0.092. So another rate has to show more than the scatter of the samples.

    Args:
        rates: in order.
        first: where to begin.
        outcome: of a trial of a rate.
        worse: whether the first outcome is surely worse than the second.
    """
    position = rates.index(first)
    found = outcome(rates[position])
    for direction in (-1, 1):
        moved = False
        while 0 <= position + direction < len(rates):
            other = outcome(rates[position + direction])
            if not worse(found, other):
                break
            position, found, moved = position + direction, other, True
        if moved:
            break
    return rates[position]


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
