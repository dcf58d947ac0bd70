"""Metrics of classes: scores (rows, classes), float32, and class numbers (rows,), int64.

Precision, recall and F1 are means over the classes that occur among the labels or the answers, each class
counting the same (macro average); a class that is never answered has precision 0, one without labels has
recall 0. Source: Sokolova & Lapalme, "A systematic analysis of performance measures for classification
tasks" (2009), table 3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_TINY = 1e-20  # a probability that has underflowed


def hits(scores: Array, labels: Array) -> tuple[Array, ...]:
    """Return 1.0 where the highest score is the label's; ties go to the first class: (rows,)."""
    return ((scores.argmax(1) == labels).astype(np.float64),)


def hits_in_5(scores: Array, labels: Array) -> tuple[Array, ...]:
    """Return 1.0 where fewer than five classes come before the label's; of equal scores, lower numbers do."""
    own = np.take_along_axis(scores, labels[:, None], 1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    return ((before.sum(1) < 5) & np.isfinite(own[:, 0]),)


def share(hit: Array) -> float:
    """Return the mean of hits, 0 to 1."""
    return float(hit.mean(dtype=np.float64))


def pairs(scores: Array, labels: Array) -> tuple[Array, ...]:
    """Return the answers and the labels, (rows,) int64 each."""
    return scores.argmax(1), labels


def precision(answers: Array, labels: Array) -> float:
    """Return the mean over classes of right answers / answers."""
    right, answered, _ = _counts(answers, labels)
    return float((right / np.maximum(answered, 1)).mean())


def recall(answers: Array, labels: Array) -> float:
    """Return the mean over classes of right answers / labels."""
    right, _, labelled = _counts(answers, labels)
    return float((right / np.maximum(labelled, 1)).mean())


def f1(answers: Array, labels: Array) -> float:
    """Return the mean over classes of 2 right / (answers + labels)."""
    right, answered, labelled = _counts(answers, labels)
    return float((2 * right / (answered + labelled)).mean())


def _counts(answers: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Return right answers, answers and labels of each class that occurs."""
    found = np.union1d(answers, labels)
    last = int(found.max()) + 1
    counted = [np.bincount(x, minlength=last)[found] for x in (answers[answers == labels], answers, labels)]
    return counted[0], counted[1], counted[2]


def surprise(scores: Array, labels: Array) -> tuple[Array, ...]:
    """Return -log p of the label in nats, (rows,) float64; ``scores`` are logits.

    Logarithms of probabilities are logits too: their softmax is the probabilities.
    """
    x = scores.astype(np.float64)
    x -= x.max(1, keepdims=True)
    own = np.take_along_axis(x, labels[:, None], 1)[:, 0]
    return (np.log(np.exp(x).sum(1)) - own,)


def as_logits(probabilities: Array) -> Array:
    """Return the logarithms of probabilities."""
    found: Array = np.log(np.maximum(probabilities, _TINY))
    return found


def perplexity(nats: Array) -> float:
    """Return exp of the mean of :func:`surprise`, infinity when that is too large. Jelinek et al. (1977)."""
    mean = float(nats.mean())
    return math.exp(mean) if mean < 700 else math.inf
