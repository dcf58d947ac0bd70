"""Metrics on labelled data: one line of :data:`METRICS` each.

A metric is computed in two steps, so that no output has to be kept: ``parts`` reduces one batch to a few
numbers a row, ``total`` turns those of all batches into the metric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxprune.metrics import classes, text, values

Array = NDArray[Any]
CLASSES, VALUES, TEXT = "classes", "values", "text"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        form: what it is computed from: ``classes`` (scores (rows, classes) and class numbers (rows,)),
            ``values`` (rows of floats, and as many of the labels), ``text`` (scores (samples, steps, classes)
            and class numbers (samples, length)).
        parts: (scores, labels) of one batch -> arrays with one entry for each row.
        total: the same arrays, all batches joined -> the metric.
        lower: True when less is better.
        scale: the best value, which points of a hundred are of; None when there is none.
    """

    form: str
    parts: Callable[[Array, Array], tuple[Array, ...]]
    total: Callable[..., float]
    lower: bool = False
    scale: float | None = 1.0


METRICS: dict[str, Metric] = {
    "accuracy": Metric(CLASSES, classes.hits, classes.share),
    "top-5": Metric(CLASSES, classes.hits_in_5, classes.share),
    "precision": Metric(CLASSES, classes.pairs, classes.precision),
    "recall": Metric(CLASSES, classes.pairs, classes.recall),
    "f1": Metric(CLASSES, classes.pairs, classes.f1),
    "perplexity": Metric(CLASSES, classes.surprise, classes.perplexity, lower=True, scale=None),
    "spearman": Metric(VALUES, values.pairs, values.spearman),
    "rmse": Metric(VALUES, values.squares, values.root, lower=True, scale=None),
    "cosine": Metric(VALUES, values.cosines, values.mean),
    "character-accuracy": Metric(TEXT, text.matches, values.mean),
}
