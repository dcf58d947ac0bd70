"""Rules that share the sparsity out by what a layer is, without measuring what pruning it does.

To add one: a file with ``shares(facts, sparsity)``, a line in :data:`RULES`, a test file. A rule says what
the layers should get in relation to each other; :func:`counts` makes it the exact number of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.budget import Curve, exact_counts
from onnxprune.allocation.rules import erk, global_threshold, owl, uniform
from onnxprune.allocation.rules.facts import Facts

Shares = Callable[[Mapping[str, Facts], float], NDArray[np.float64]]


@dataclass(frozen=True)
class Rule:
    """How sparsity is shared out.

    Attributes:
        shares: (layers, s) -> (layers,) sparsity of each, before it is cut to what a layer may get; it grows
            with ``s``, from nothing at 0 to everything at 1.
        scored: whether it reads the saliencies of the weights, which takes a pass over the data.
    """

    shares: Shares
    scored: bool


RULES = {
    "uniform": Rule(uniform.shares, scored=False),
    "erk": Rule(erk.shares, scored=False),
    "global": Rule(global_threshold.shares, scored=True),
    "owl": Rule(owl.shares, scored=True),
}


def counts(rule: Rule, facts: Mapping[str, Facts], zeros: int) -> dict[str, int]:
    """Return zeros per layer that sum to ``zeros``, or to what the layers may take if that is less."""
    if not facts:
        return {}
    sizes = np.array([item.size for item in facts.values()], dtype=np.float64)
    highest = np.array([item.highest for item in facts.values()])
    zeros = min(zeros, sum(int(item.highest * item.size) for item in facts.values()))

    def wanted(s: float) -> NDArray[np.float64]:
        return np.asarray(np.clip(rule.shares(facts, s), 0.0, highest) * sizes)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if wanted(middle).sum() < zeros else (low, middle)
    below, above = wanted(low), wanted(high)
    room = (above - below).sum()  # many weights may have the very same saliency
    share = min(1.0, max(0.0, (zeros - below.sum()) / room)) if room > 0 else 0.0
    limits = {name: Curve(item.size, (0.5,), (1.0,), item.highest) for name, item in facts.items()}
    return exact_counts(dict(zip(facts, below + share * (above - below), strict=True)), zeros, limits)
