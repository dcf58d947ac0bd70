"""The loss on labels: which output they belong to, and how far it is from them.

Class numbers: cross entropy in nats per label, as much as the distillation loss of classes (Hinton et al.,
2015, add the two). Values: squared error relative to the variance of all labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.labels import IGNORED
from onnxprune.calibration.mask import row_mask
from onnxprune.errors import DataError
from onnxprune.outputs import BY_NAME, FEATURES, LOGITS, PROBABILITIES, OutputKind, is_float

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
_TINY = 1e-20  # a probability that has underflowed


@dataclass(frozen=True)
class Task:
    """What labels are compared with.

    Attributes:
        output: name of the output.
        kind: logits or probabilities for class numbers, features for values.
        scale: of squared errors: the variance of the labels; 1 for class numbers.
        count: labels to learn from, those that are ignored left out.
    """

    output: str
    kind: OutputKind
    scale: float = 1.0
    count: int = 0

    def __call__(self, output: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of one batch; 0 when all its labels are ignored.

        Args:
            output: the student's.
            labels: int64 class numbers, :data:`~onnxprune.calibration.labels.IGNORED` where there is none,
                or float32 values.
            mask: ``(batch, tokens)``, True where a token is real; labels of tokens count only there.

        Raises:
            DataError: when the labels do not fit the output's shape.
        """
        import torch  # metrics find their output here too, and need no torch
        from torch.nn import functional as F

        x = output.float()
        if self.kind.classes:
            x = x.movedim(self.kind.axis, -1)
        wanted = self.check(tuple(output.shape), tuple(labels.shape))
        real = torch.ones_like(labels, dtype=torch.bool)
        if mask is not None and labels.shape[:2] == mask.shape:
            real &= mask.reshape(*mask.shape, *[1] * (labels.ndim - 2))
        real, labels = real.reshape(wanted), labels.reshape(wanted)
        if not self.kind.classes:
            return F.mse_loss(x[real], labels[real]) / self.scale if real.any() else 0.0 * x.sum()
        real = real & (labels != IGNORED)
        log = x.clamp_min(_TINY).log() if self.kind.family == PROBABILITIES else x.log_softmax(-1)
        picked = log.gather(-1, torch.where(real, labels, 0).unsqueeze(-1)).squeeze(-1)
        return -torch.where(real, picked, 0.0).sum() / real.sum().clamp_min(1)

    def check(self, output: Shape, labels: Shape) -> Shape:
        """Return the shape of labels for an output of shape ``output``.

        Raises:
            DataError: when ``labels`` is another one.
        """
        wanted = _without(output, self.kind.axis) if self.kind.classes else output
        if not alike(labels, wanted):
            found = f"labels of shape {list(labels)} do not fit output {self.output!r}"
            raise DataError(f"{found}, {list(output)} in the same batch")
        return wanted


def find_task(
    key: str,
    data: CalibrationData,
    held_out: CalibrationData | None,
    values: Mapping[str, NDArray[Any]],
    kinds: Mapping[str, OutputKind],
) -> Task:
    """Return the task that the labels of ``data`` set: the first output that fits them.

    Class numbers fit an output with one more axis, of classes; outputs that are known to hold classes come
    before others. Values fit an output of their own shape.

    Args:
        key: array of the labels, for messages.
        data: samples to learn from, with labels.
        held_out: samples that choose the weights, with labels; None: ``data`` does.
        values: the dense model's outputs for the first batch of ``data``, those that numpy can hold.
        kinds: what the outputs mean.

    Raises:
        DataError: when no output fits, a class number is none of its classes, or all labels are ignored.
    """
    labels = data.labels[0]
    classes = labels.dtype.kind == "i"
    fitting = _with_classes(labels.shape, values, kinds) if classes else _of_shape(labels.shape, values)
    found = next(iter(fitting), None)
    if found is None:
        listed = "; ".join(f"{name}: {_written(value)}" for name, value in values.items())
        raise DataError(
            f"--labels {key}: {_written(labels)} in the first batch fits no output; outputs are {listed}",
            "class numbers (integers) want an output with one axis more, values (floats) one of their shape",
        )
    name, kind = found
    real = [_real(item) for item in (data, held_out) if item is not None]
    if not real[0].size:
        raise DataError(f"--labels {key}: all labels are {IGNORED}, which stands for none")
    if not classes:
        return Task(name, kind, _spread(real[0]), real[0].size)
    count = values[name].shape[kind.axis]
    every = np.concatenate(real)
    if every.min() < 0 or every.max() >= count:
        wrong = int(every.min() if every.min() < 0 else every.max())
        raise DataError(
            f"--labels {key}: class number {wrong}, but output {name!r} ({_written(values[name])}) has "
            f"{count} classes, 0 to {count - 1}",
            f"number the classes as the model does; {IGNORED} stands for no label",
        )
    return Task(name, kind, 1.0, real[0].size)


def alike(found: Shape, wanted: Shape) -> bool:
    """Whether two shapes are equal but for axes of length one at their end: (N,) is (N, 1)."""
    return _plain(found) == _plain(wanted) or math.prod(found) == math.prod(wanted) == 1


def _plain(shape: Shape) -> Shape:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _with_classes(
    shape: Shape, values: Mapping[str, NDArray[Any]], kinds: Mapping[str, OutputKind]
) -> Iterable[tuple[str, OutputKind]]:
    """Yield outputs whose rows of classes have the labels' shape, the surest first."""
    for name, value in values.items():
        kind = kinds[name]
        if kind.classes and alike(shape, _without(value.shape, kind.axis)):
            yield name, kind
    for name, value in values.items():
        kind = kinds[name]
        if kind.family != FEATURES or kind.reason == BY_NAME or not is_float(value.dtype):
            continue
        for axis in (value.ndim - 1, 1):
            if 0 < axis < value.ndim and value.shape[axis] > 1 and alike(shape, _without(value.shape, axis)):
                yield name, OutputKind(LOGITS, axis, "by the labels")


def _of_shape(shape: Shape, values: Mapping[str, NDArray[Any]]) -> Iterable[tuple[str, OutputKind]]:
    for name, value in values.items():
        if is_float(value.dtype) and alike(shape, value.shape):
            yield name, OutputKind(FEATURES, reason="by the labels")


def _without(shape: Shape, axis: int) -> Shape:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def _real(data: CalibrationData) -> NDArray[Any]:
    """Return the labels that count, flat."""
    found: list[NDArray[Any]] = []
    for feeds, labels in zip(data.batches, data.labels, strict=True):
        mask = row_mask(feeds)
        own = labels[mask] if mask is not None and labels.shape[:2] == mask.shape else labels
        found.append(own[own != IGNORED] if own.dtype.kind == "i" else own.ravel())
    return np.concatenate(found)


def _spread(values: NDArray[Any]) -> float:
    """Return the variance of values, or their mean square if they are all the same."""
    exact = values.astype(np.float64)
    return max(float(exact.var()) or float(np.square(exact).mean()), _TINY)


def _written(value: NDArray[Any]) -> str:
    return f"{value.dtype.name}[{','.join(map(str, value.shape))}]"


def label_report(key: str, task: Task | None, labels: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """Return what the report says of the labels: key, count, output and loss (None: the user's own)."""
    if task is None:
        return {"key": key, "count": sum(array.size for array in labels), "output": None, "loss": None}
    loss = "cross entropy" if task.kind.classes else "squared error"
    return {"key": key, "count": task.count, "output": task.output, "loss": loss}
