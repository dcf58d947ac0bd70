"""Training batches: random samples, with what the dense model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxprune import runtime
from onnxprune.calibration.augment import Change
from onnxprune.calibration.cut import Cutter
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.labels import LABELS
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.streams import run
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Model

Feed = Mapping[str, NDArray[Any]]
Tensors = dict[str, Tensor]
Source = Callable[[int], Feed]
Unit = list[tuple[int, int]]  # (batch, row) of each sample
WHOLE = -1  # in place of a row: the whole batch


class Taps:
    """Runs a model in ONNX Runtime and returns any of its values.

    Args:
        model: the model.
        names: values to return.
        feeds: one batch, for the types of the inputs.
        threads: of ONNX Runtime.
    """

    def __init__(self, model: Model, names: Sequence[str], feeds: Feed, threads: int | None = None) -> None:
        cutter = Cutter(model)
        segment = cutter.segment(names, frozenset(feeds))
        types = {name: array.dtype for name, array in feeds.items()}
        self.names = list(names)
        self.inputs = segment.inputs
        proto = cutter.proto(segment, types, self.names, model)
        # Between two runs torch works: threads spinning for the next run would be in its way.
        config = {"session.intra_op.allow_spinning": "0"}
        self.session = runtime.session(proto, threads=threads, config=config, name=model.name)

    def __call__(self, feeds: Feed) -> dict[str, NDArray[Any]]:
        """Return the values for one batch."""
        found = run(self.session, self.names, {name: feeds[name] for name in self.inputs})
        return dict(zip(self.names, found, strict=True))


class Batches:
    """Samples with the values that the student is to reproduce, in random batches.

    Where every array has a row per sample, rows of equal shape are mixed anew in each epoch; otherwise the
    batches stay as they are.

    Args:
        numbers: of the batches there are.
        feeds: gives the student's inputs of a batch by its number.
        targets: gives the teacher's values of a batch by its number.
        size: samples in a training batch.
        live: makes (feeds, targets) from changed feeds; with ``augment``.
        augment: changes the feeds of a batch.
        labels: of each batch; they come with the targets, under
            :data:`~onnxprune.calibration.labels.LABELS`.
        whole: the batches must stay as they are, see :func:`must_stay_whole`.

    Attributes:
        size: as given; may be changed before the first epoch.
        samples: rows, or batches where these stay whole.
    """

    def __init__(
        self,
        numbers: range,
        feeds: Source,
        targets: Source,
        *,
        size: int = 16,
        live: Callable[[Feed], tuple[Feed, Feed]] | None = None,
        augment: Change | None = None,
        labels: Sequence[NDArray[Any]] = (),
        whole: bool = False,
    ) -> None:
        self.numbers, self.feeds, self.targets, self.size = numbers, feeds, targets, size
        self.live, self.augment, self.labels = live, augment, labels
        shapes = [{name: a.shape for name, a in feeds(number).items()} for number in numbers]
        # One batch shows whether the teacher's values have a row per sample; for all, it would have to run.
        shapes[0] = {**shapes[0], **{f"target {name}": a.shape for name, a in targets(numbers[0]).items()}}
        rows = [{shape[0] if shape else -1 for shape in found.values()} for found in shapes]
        self.samples = len(numbers)
        self._groups: list[Unit] | None = None
        if not whole and all(len(found) == 1 and -1 not in found for found in rows) and self._by_sample():
            self.samples = sum(next(iter(found)) for found in rows)
            self._groups = self._grouped()

    @property
    def whole(self) -> bool:
        """Whether the batches stay as they are."""
        return self._groups is None

    def _by_sample(self) -> bool:
        """Whether one sample gives values of one row.

        Else their first axis is another one, such as the steps of sequences, that is as long by chance.
        """
        if self.live is None:
            return True
        first = {name: array[:1] for name, array in self.feeds(self.numbers[0]).items()}
        try:
            _, values = self.live(first)
        except OnnxPruneError:  # a batch of another size than declared does not run: these are not cut either
            return False
        return all(array.ndim and len(array) == 1 for array in values.values())

    def keep_whole(self) -> None:
        """Leave the batches as they are from now on."""
        self._groups, self.samples = None, len(self.numbers)

    def largest(self) -> tuple[int, int]:
        """Return (batch, row) of a sample that takes most memory."""
        sizes = {n: sum(a[:1].nbytes for a in self.feeds(n).values()) for n in self.numbers}
        return max(sizes, key=sizes.__getitem__), 0

    def _grouped(self) -> list[Unit]:
        """Samples that may be in one batch: all their arrays have equal shapes."""
        groups: dict[tuple[Any, ...], Unit] = {}
        for number in self.numbers:
            found = {name: array.shape for name, array in self.feeds(number).items()}
            key = tuple((name, shape[1:]) for name, shape in sorted(found.items()))
            if self.labels:
                key += ((LABELS, self.labels[number].shape[1:]),)
            rows = next(iter(found.values()))[0]
            groups.setdefault(key, []).extend((number, row) for row in range(rows))
        return list(groups.values())

    def epoch(self, random: np.random.Generator) -> list[Unit]:
        """Return the batches of one pass over the data, in random order."""
        units: list[Unit] = []
        for group in self._groups or []:
            order = random.permutation(len(group))
            units += [[group[i] for i in order[k : k + self.size]] for k in range(0, len(order), self.size)]
        if self._groups is None:
            units = list(self.in_order())
        return [units[i] for i in random.permutation(len(units))]

    def in_order(self) -> Iterator[Unit]:
        """Yield the batches as they came."""
        for number in self.numbers:
            yield [(number, WHOLE)]

    def pieces(self, least: int) -> list[Unit]:
        """Return all samples once, cut into ``least`` units or more, as far as they can be cut."""
        if self._groups is None:
            return list(self.in_order())
        size, units = max(1, self.samples // least), []
        for number in self.numbers:
            rows = len(next(iter(self.feeds(number).values())))
            units += [[(number, row) for row in range(k, min(k + size, rows))] for k in range(0, rows, size)]
        return units

    def get(
        self, unit: Unit, random: np.random.Generator | None = None
    ) -> tuple[Tensors, Tensors, Tensor | None]:
        """Return feeds, the teacher's values (and labels) and the mask of real tokens.

        The feeds are changed, and the teacher's values are those for them, if ``random`` is given.
        """
        feeds = _rows(unit, self.feeds)
        if random is not None and self.augment is not None and self.live is not None:
            feeds, targets = self.live(self.augment(feeds, random))
        else:
            targets = _rows(unit, self.targets)
        if self.labels:
            targets = {**targets, **_rows(unit, lambda number: {LABELS: self.labels[number]})}
        mask = row_mask(feeds)
        return tensors(feeds), tensors(targets), None if mask is None else torch.from_numpy(mask)


def must_stay_whole(data: CalibrationData) -> bool:
    """Whether samples of ``data`` cannot be mixed anew: the model fixes the batch, or rows share an input."""
    shared = data.batched is not None and any(not data.batched.issuperset(b) for b in data.batches)
    return data.fixed is not None or shared


def _rows(unit: Unit, source: Source) -> Feed:
    if unit[0][1] == WHOLE:
        return source(unit[0][0])
    held = {number: source(number) for number in {number for number, _ in unit}}
    return {name: np.stack([held[n][name][row] for n, row in unit]) for name in held[unit[0][0]]}


def tensors(values: Feed) -> Tensors:
    """Return the arrays as tensors, without copying those that may be written to."""
    return {name: torch.from_numpy(np.require(a, requirements="W")) for name, a in values.items()}
