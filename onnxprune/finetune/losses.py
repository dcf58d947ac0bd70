"""How far the student is from the dense model: one number to minimise.

Classes: KL divergence in nats per row (Hinton et al., "Distilling the Knowledge in a Neural Network",
2015, at temperature 1). Everything else, and values inside the model (Romero et al., "FitNets", 2015):
squared error relative to the variance of the dense model's values, so that all of them weigh the same;
outputs beside classes times the information of those, where they count (:mod:`onnxprune.answers`).
With labels, the loss on them is added, see :mod:`onnxprune.finetune.task`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.calibration.labels import LABELS
from onnxprune.errors import DataError, UsageError
from onnxprune.finetune.maps import map_divergence
from onnxprune.finetune.task import Task
from onnxprune.outputs import EXACT, NONE, PROBABILITIES, OutputKind

Values = Mapping[str, Tensor]
CustomLoss = Callable[[Values, Values, Values], Tensor]
CHOICES = ("auto", "kl", "mse")
_TINY = 1e-20  # a probability that has underflowed


@dataclass(frozen=True)
class Loss:
    """What is minimised.

    Attributes:
        kinds: output -> what it means.
        features: values inside the model that are compared too.
        maps: attention maps that are compared too, see :mod:`onnxprune.finetune.maps`.
        form: ``auto`` (KL for classes, relative squared error for the rest), ``kl`` or ``mse``.
        custom: ``f(student, teacher, feeds)``, a scalar that is minimised in place of the outputs' loss.
        weight: of the features' mean against the outputs' mean.
        task: the loss on labels, added to the others; None without labels, or when ``custom`` sees to them.
        key: name under which ``custom`` finds the labels among the feeds.
    """

    kinds: Mapping[str, OutputKind]
    features: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    form: str = "auto"
    custom: CustomLoss | None = None
    weight: float = 1.0
    task: Task | None = None
    key: str = ""
    _outputs: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        classes = [name for name, kind in self.kinds.items() if kind.classes]
        smooth = [name for name, kind in self.kinds.items() if kind.family not in (EXACT, NONE)]
        if self.form == "kl" and not classes:
            raise UsageError("--loss kl needs an output with classes, the model has none", "try --loss mse")
        chosen = classes if self.form == "kl" else smooth
        if self.form == "auto" and classes:
            chosen = [n for n in smooth if self.kinds[n].classes or (self.kinds[n].counts and self._nats)]
        if not chosen and not self.features and self.custom is None:
            raise UsageError("no output of the model is a float tensor: nothing to fine-tune towards")
        object.__setattr__(self, "_outputs", tuple(chosen))

    @property
    def _beside(self) -> list[str]:
        """Outputs that are compared beside classes."""
        classes = self.custom is None and any(self.kinds[name].classes for name in self._outputs)
        return [name for name in self._outputs if classes and not self.kinds[name].classes]

    @property
    def _nats(self) -> float:
        """What an output that holds no classes weighs beside those that do, see :mod:`onnxprune.answers`."""
        found = [kind.information for kind in self.kinds.values() if kind.classes]
        return sum(found) if found and self.form == "auto" else 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """Every value that the loss reads."""
        outputs = tuple(self.kinds) if self.custom is not None else self._outputs
        task = () if self.task is None else (self.task.output,)
        return tuple(dict.fromkeys((*outputs, *task, *self.features, *self.maps)))

    def __call__(self, student: Values, teacher: Values, feeds: Values, mask: Tensor | None = None) -> Tensor:
        """Return the loss of one batch.

        Args:
            student: a tensor for each of :attr:`names`.
            teacher: the dense model's; and the labels, under :data:`~onnxprune.calibration.labels.LABELS`.
            feeds: the model's inputs.
            mask: ``(batch, tokens)``, True where a token is real.

        Raises:
            DataError: when a value of the student has another shape than the teacher's, or than the labels.
        """
        labels = teacher.get(LABELS)
        unlike = {n for n in self._beside if not _comparable(student[n], teacher[n])}
        for name in self.names:
            if student[name].shape != teacher[name].shape and name not in unlike:
                found, wanted = list(student[name].shape), list(teacher[name].shape)
                raise DataError(f"value {name!r} is {found}, the teacher's {wanted}")
        parts = []
        if self.custom is not None:
            if labels is not None:
                feeds = {**feeds, self.key: labels}
            theirs = {name: value for name, value in teacher.items() if name != LABELS}
            parts.append(_checked(self.custom(student, theirs, feeds)))
        elif self._outputs:
            outputs = [name for name in self._outputs if name not in unlike]
            parts.append(_mean([self._output(name, student, teacher, mask) for name in outputs]))
        if self.features:
            errors = [relative_error(student[name], teacher[name], mask) for name in self.features]
            parts.append(self.weight * _mean(errors))
        if self.maps:
            parts.append(_mean([map_divergence(student[name], teacher[name], mask) for name in self.maps]))
        if self.task is not None and labels is not None:
            parts.append(self.task(student[self.task.output], labels, mask))
        return torch.stack(parts).sum()

    def of_outputs(self) -> Loss:
        """Return the loss of the outputs, and on labels; of the values inside where no output is compared.

        Values inside are compared to learn more from a sample, and repairs by layer fit them already: of
        CIFAR ResNet-20 with `block:4x1` training lowered the divergence on test images by a fifth, that of
        held-out ones by 15 %, their sum with values inside by 8 %.
        """
        compares = self.custom is not None or self._outputs
        return dataclasses.replace(self, features=(), maps=()) if compares else self

    def sharpened(self, student: Values, factor: float) -> Values:
        """Return the student's values with its logits times ``factor``, in every output that KL compares.

        The order of the classes stays: what this gains is no accuracy, only confidence.
        """
        return {
            name: _sharper(value, self.kinds[name], factor) if self._by_kl(name) else value
            for name, value in student.items()
        }

    @property
    def has_confidence(self) -> bool:
        """Whether :meth:`sharpened` changes anything that no labels speak of."""
        return self.task is None and any(self._by_kl(name) for name in self.names)

    def _by_kl(self, name: str) -> bool:
        compared = self.custom is None and self.form != "mse" and name in self._outputs
        return compared and self.kinds[name].classes

    def _output(self, name: str, student: Values, teacher: Values, mask: Tensor | None) -> Tensor:
        kind = self.kinds[name]
        if kind.classes and self.form != "mse":
            return divergence(student[name], teacher[name], kind, mask)
        a, b, shape = student[name], teacher[name], tuple(teacher[name].shape)
        parts = zip(kind.parts(shape), kind.floors(shape), strict=True)
        return self._nats * _mean([relative_error(a[part], b[part], mask, floor) for part, floor in parts])


def divergence(student: Tensor, teacher: Tensor, kind: OutputKind, mask: Tensor | None = None) -> Tensor:
    """Return the mean over rows of KL(teacher || student), in nats."""
    a, b = teacher.float().movedim(kind.axis, -1), student.float().movedim(kind.axis, -1)
    if kind.axis % teacher.ndim == teacher.ndim - 1:
        a, b = real_rows(a, mask), real_rows(b, mask)
    if kind.family == PROBABILITIES:
        log_p, log_q = a.clamp_min(_TINY).log(), b.clamp_min(_TINY).log()
    else:
        log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def _sharper(value: Tensor, kind: OutputKind, factor: float) -> Tensor:
    """Return logits times ``factor``, or the probabilities that belong to them."""
    if kind.family != PROBABILITIES:
        return value * factor
    return (value.float().clamp_min(_TINY).log() * factor).softmax(kind.axis)


def relative_error(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, floor: float = 0.0
) -> Tensor:
    """Return the squared error divided by the teacher's variance (by its mean square, if it is constant).

    The divisor is ``floor`` at least.
    """
    a, b = real_rows(teacher.float(), mask), real_rows(student.float(), mask)
    with torch.no_grad():
        variance = a.var(correction=0)
        scale = torch.where(variance > 0, variance, a.square().mean()).clamp_min(max(floor, _TINY))
    return F.mse_loss(b, a) / scale


def real_rows(value: Tensor, mask: Tensor | None) -> Tensor:
    """Take padded tokens out of ``(batch, tokens, ..., width)`` or ``(batch * tokens, ..., width)``."""
    if mask is None:
        return value
    if value.ndim >= 3 and value.shape[:2] == mask.shape:
        return value[mask]
    if value.ndim >= 2 and value.shape[0] == mask.numel():
        return value[mask.reshape(-1)]
    return value


def _comparable(student: Tensor, teacher: Tensor) -> bool:
    """Whether an output beside classes can be learnt: boxes that were selected, or are infinite, cannot."""
    return student.shape == teacher.shape and bool(torch.isfinite(teacher).all())


def _checked(value: object) -> Tensor:
    """Return what the user's function gave, or say why it is no loss."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        shape = f" of shape {list(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else ""
        raise DataError(
            f"--loss returned a {type(value).__name__}{shape}, wanted one float as a torch tensor"
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        raise DataError(
            "--loss does not depend on the student's outputs, or not smoothly: it has no gradient",
            "compute it from the tensors of the first argument, without argmax, .item() or .detach()",
        )
    return value.reshape(())


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
