"""Accuracy of characters read by a model with a CTC output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.labels import IGNORED

Array = NDArray[Any]
BLANK = 0  # the class that stands for "no character"


def matches(scores: Array, labels: Array) -> tuple[Array, ...]:
    """Return the character accuracy of each sample, 0 to 1: (samples,) float64.

    It is ``1 - d / max(len(read), len(label), 1)`` with the edit distance d (Levenshtein, 1966) between the
    label and what best-path decoding reads: the best class of each step, repetitions merged, class 0 (the
    blank) left out (Graves et al., "Connectionist temporal classification", 2006, section 3.2).

    Args:
        scores: (samples, steps, classes) floats.
        labels: (samples, length) class numbers; :data:`~onnxprune.calibration.labels.IGNORED` fills the end.
    """
    best = scores.argmax(-1)
    shares = []
    for steps, label in zip(best, labels, strict=True):
        read, wanted = greedy(steps), [int(c) for c in label if c != IGNORED]
        shares.append(1 - distance(read, wanted) / max(len(read), len(wanted), 1))
    return (np.array(shares, dtype=np.float64),)


def greedy(steps: Array) -> list[int]:
    """Merge equal neighbours, then leave the blanks out."""
    first = np.ones(len(steps), dtype=bool)
    first[1:] = steps[1:] != steps[:-1]
    return [int(c) for c in steps[first] if c != BLANK]


def distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the least number of insertions, deletions and replacements that make ``a`` to ``b``."""
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a):
        current = [i + 1]
        for j, y in enumerate(b):
            current.append(min(previous[j + 1] + 1, current[j] + 1, previous[j] + (x != y)))
        previous = current
    return previous[-1]
