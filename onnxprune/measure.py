"""The task metric of a run: the user's own function (``--eval``), or a metric on labels (``--metric``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.answers import output_kinds
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.labels import IGNORED
from onnxprune.calibration.mask import row_mask
from onnxprune.errors import DataError
from onnxprune.evaluate import load_function, run, task_metric
from onnxprune.finetune.task import Task, find_task
from onnxprune.metrics import CLASSES, METRICS, TEXT, VALUES, Metric
from onnxprune.metrics.classes import as_logits
from onnxprune.model import Model
from onnxprune.outputs import PROBABILITIES, OutputKind, is_float
from onnxprune.recipe import Recipe

Array = NDArray[Any]


class Measure(Protocol):
    """Measures a session.

    Attributes:
        lower: True when less is better.
        scale: the best value; None when it is not known.
        own_data: True when it brings its own samples and takes no notice of those it is given.
    """

    lower: bool
    scale: float | None
    own_data: bool

    def __call__(self, session: Any, data: CalibrationData, *, finite: bool = True) -> float:
        """Return the metric; NaN and infinity are a DataError, unless ``finite`` is False."""


def find_measure(
    recipe: Recipe, dense: Model, session: Any, data: CalibrationData, held_out: CalibrationData
) -> Measure | None:
    """Return what the recipe measures, None when it measures nothing.

    Args:
        recipe: of the run.
        dense: the dense model.
        session: of it.
        data: labelled samples.
        held_out: labelled samples too.

    Raises:
        DataError: when the labels fit no output of the model, or are not of the kind that the metric wants.
        UsageError: when ``recipe.eval`` names no function.
    """
    if recipe.eval is not None:
        return OwnFunction(recipe.eval)
    if recipe.metric is None:
        return None
    assert recipe.labels is not None  # checked by the recipe
    return OnLabels(recipe.metric, recipe.labels, dense, session, (data, held_out))


class OwnFunction:
    """A function of the user's; more is better."""

    lower = False
    scale: float | None = None
    own_data = True

    def __init__(self, reference: str) -> None:
        self.function = load_function(reference)

    def __call__(self, session: Any, data: CalibrationData, *, finite: bool = True) -> float:
        """See :class:`Measure`."""
        return task_metric(self.function, session, finite=finite)


@dataclass(frozen=True)
class _Place:
    """Which output is measured, and what its axes mean."""

    output: str
    kind: OutputKind
    task: Task | None = None  # None: steps of text
    steps_first: bool = False  # (steps, samples, classes)


class OnLabels:
    """One of :data:`onnxprune.metrics.METRICS` on labelled samples."""

    own_data = False

    def __init__(
        self,
        name: str,
        key: str,
        dense: Model,
        session: Any,
        parts: Sequence[CalibrationData],
    ) -> None:
        self.name, self.key, self.metric = name, key, METRICS[name]
        self.lower = self.metric.lower
        self.scale: float | None = self.metric.scale
        parts = [_in_form(part, self.metric, name, key) for part in parts]
        feeds = parts[0].batches[0]
        names = [item.name for item in session.get_outputs() if item.type.startswith("tensor(")]
        found = dict(zip(names, run(session, feeds, names), strict=True))
        values = {key: value for key, value in found.items() if is_float(value.dtype)}
        kinds = output_kinds(values, dense)
        if self.metric.form == TEXT:
            self.place = _text_place(key, parts[0].labels[0], values, kinds)
        else:
            task = find_task(key, parts[0], parts[1], values, kinds)
            self.place = _Place(task.output, task.kind, task)

    def __call__(self, session: Any, data: CalibrationData, *, finite: bool = True) -> float:
        """See :class:`Measure`."""
        data = _in_form(data, self.metric, self.name, self.key)
        found = []
        for feeds, labels in zip(data.batches, data.labels, strict=True):
            output = run(session, feeds, [self.place.output])[0]
            scores, wanted = self._rows(output, labels, row_mask(feeds))
            if len(wanted):
                found.append(self.metric.parts(scores, wanted))
        if not found:
            raise DataError(f"--labels {self.key}: all labels are {IGNORED}, which stands for none")
        value = self.metric.total(*(np.concatenate(column) for column in zip(*found, strict=True)))
        if finite and not np.isfinite(value):
            raise DataError(f"--metric {self.name} of the model is {value}", "check the labels and the data")
        return value

    def _rows(self, output: Array, labels: Array, mask: NDArray[np.bool_] | None) -> tuple[Array, Array]:
        """Return the output and the labels as the metric wants them, without what does not count."""
        place = self.place
        if place.task is None:
            return output.swapaxes(0, 1) if place.steps_first else output, labels
        wanted = place.task.check(output.shape, labels.shape)
        real = np.ones(labels.shape, dtype=bool)
        if mask is not None and labels.shape[:2] == mask.shape:
            real &= mask.reshape(*mask.shape, *[1] * (labels.ndim - 2))
        if self.metric.form == CLASSES:
            scores = np.moveaxis(output, place.kind.axis, -1).astype(np.float32, copy=False)
            if place.kind.family == PROBABILITIES and self.name == "perplexity":
                scores = as_logits(scores)
            keep = (real & (labels != IGNORED)).reshape(wanted)
            return scores[keep], labels.reshape(wanted)[keep]
        rows = [array.reshape(wanted) for array in (output, labels, real)]
        if self.name == "cosine":  # the last axis is one vector
            found, own, keep = (array.reshape(-1, array.shape[-1]) for array in rows)
            return found[keep.any(1)], own[keep.any(1)]
        return rows[0][rows[2]][:, None], rows[1][rows[2]][:, None]


def _in_form(data: CalibrationData, metric: Metric, name: str, key: str) -> CalibrationData:
    """Return ``data`` with labels of the type that the metric wants."""
    integers = all(array.dtype.kind == "i" for array in data.labels)
    if metric.form == VALUES:  # scores of 0 to 5 may well be written as integers
        return replace(data, labels=tuple(array.astype(np.float32) for array in data.labels))
    if not integers:
        raise DataError(
            f"--labels {key} are {data.labels[0].dtype.name}, --metric {name} wants class numbers (integers)"
        )
    return data


def _text_place(
    key: str, labels: Array, values: Mapping[str, Array], kinds: Mapping[str, OutputKind]
) -> _Place:
    """Find the output with steps of classes: (samples, steps, classes), else (steps, samples, classes)."""
    order = sorted(values, key=lambda name: not kinds[name].classes)  # stable: the surest first
    for first in (0, 1):
        for name in order if labels.ndim == 2 else ():
            if values[name].ndim == 3 and values[name].shape[first] == len(labels):
                return _Place(name, kinds[name], steps_first=first == 1)
    listed = "; ".join(f"{name}: {list(value.shape)}" for name, value in values.items())
    raise DataError(
        f"--labels {key}: {list(labels.shape)} in the first batch is no output's text; outputs are {listed}",
        "--metric character-accuracy wants class numbers (samples, length), filled up with "
        f"{IGNORED}, and an output (samples, steps, classes)",
    )
