"""Give a pruned model its accuracy back: the dense model teaches it, labels are not needed but help.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), with the values at the ends of
the blocks compared as well (Romero et al., "FitNets", 2015). Masks are held, so the sparsity stays exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from onnxprune.answers import output_kinds
from onnxprune.calibration import augment
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.store import ArrayStore
from onnxprune.clock import now
from onnxprune.errors import UsageError
from onnxprune.finetune.batches import Batches, Feed, Taps, must_stay_whole
from onnxprune.finetune.blocks import find_blocks, tune_blocks
from onnxprune.finetune.checkpoint import Checkpoint, key_of
from onnxprune.finetune.difference import difference
from onnxprune.finetune.losses import CustomLoss, Loss
from onnxprune.finetune.memory import fit
from onnxprune.finetune.parameters import float_weights
from onnxprune.finetune.parts import compared, find_start, smaller, trainable
from onnxprune.finetune.rates import SMALLER
from onnxprune.finetune.task import Task, find_task, label_report
from onnxprune.finetune.train import Trainer
from onnxprune.finetune.trained import NO_TIME, Settings, Trained, merged
from onnxprune.finetune.view import TorchView
from onnxprune.finetune.world import World
from onnxprune.finetune.writeback import write_back, zero_masks
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.outputs import OutputKind
from onnxprune.progress import NullProgress, Progress
from onnxprune.report.units import seconds


@dataclass(frozen=True)
class Options:
    """How to fine-tune.

    Attributes:
        settings: of the training loop.
        batch: samples in a training batch at most.
        form: of the loss: ``auto``, ``kl`` or ``mse``.
        custom: a loss of the user's own, see :class:`onnxprune.finetune.losses.Loss`.
        labels: array that the data's labels came from: their loss is added; None without.
        augment: changes of the samples, see :mod:`onnxprune.calibration.augment`.
        scope: ``model``, or ``block`` for one block after the other.
        threads: of torch and ONNX Runtime.
        max_memory: bytes of the teacher's values to hold in memory.
        resume: keep a checkpoint in the user's cache, and go on from one.
    """

    settings: Settings = field(default_factory=Settings)
    batch: int = 16
    form: str = "auto"
    custom: CustomLoss | None = None
    labels: str | None = None
    augment: tuple[str, ...] = ("auto",)
    scope: str = "model"
    threads: int | None = None
    max_memory: int = 2**30
    resume: bool = True


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning did.

    Attributes:
        trained: steps, losses, time.
        weights: names of the weights that changed.
        features: values inside the model that were compared.
        start: value that training began at, because nodes before it cannot be trained; "" for the inputs.
        difference: largest relative difference between the written model in ONNX Runtime and in torch.
        shared: weights that stayed as they were because several blocks use them; only of scope ``block``.
        labels: what was done with labels, see :func:`onnxprune.finetune.task.label_report`; None without.
    """

    trained: Trained
    weights: tuple[str, ...]
    features: tuple[str, ...]
    start: str
    difference: float = math.nan
    shared: tuple[str, ...] = ()
    labels: dict[str, Any] | None = None


def finetune(
    dense: Model,
    pruned: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    held_out: CalibrationData | None,
    options: Options,
    progress: Progress | None = None,
) -> tuple[Model, Tuned]:
    """Return a copy of ``pruned`` with trained weights, and what happened.

    Args:
        dense: the teacher; the same outputs as ``pruned``.
        pruned: the student, with plain weights; its zeros stay zero.
        layers: the prunable weights of ``pruned``.
        data: samples to learn from.
        held_out: samples that nothing was fitted to: they choose the best weights; None: ``data`` does.
        options: how.
        progress: told about the steps.

    Raises:
        ModelError: when no part of the model can be trained, or training gives NaN.
        VerificationError: when the trained model in ONNX Runtime is not the one in torch.
    """
    progress, begin = progress or NullProgress(), now()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    result = pruned.copy()
    start = find_start(result, layers)
    with World() as world:
        _take_weights_of_first(result, world)
        job = _Job(dense, result, layers, data, held_out, options, start, world, progress, begin)
        tuned = _by_block(job) if options.scope == "block" else _by_model(job)
    outputs = list(dict.fromkeys((*result.index.outputs, *tuned.features)))
    view = TorchView(result, feeds_from=[start] if start else (), outputs=outputs, trainable=())
    apart = difference(result, view, start, next(data.feeds()), options.threads)
    return result, dataclasses.replace(tuned, difference=apart)


@dataclass(frozen=True)
class _Job:
    """The arguments of :func:`finetune`, and what all ways of training need."""

    dense: Model
    result: Model  # the pruned model, trained in place
    layers: Sequence[Layer]
    data: CalibrationData
    held_out: CalibrationData | None
    options: Options
    start: str
    world: World
    progress: Progress
    begin: float  # of all this, which the minutes are for

    def settings(self, later: float, names: Collection[str]) -> Settings:
        """Return how to train ``names`` in the minutes that are left, ``later`` seconds kept free."""
        settings = self.options.settings
        if smaller(self.dense, self.result, names):
            settings = dataclasses.replace(settings, default=SMALLER)
        if settings.minutes is None:
            return settings
        spent = self.world.agreed(now() - self.begin + later)
        return dataclasses.replace(settings, minutes=max(settings.minutes - spent / 60, NO_TIME))

    def tell(self, step: int, found: Trained) -> None:
        """Count a step; when the held-out loss is new, say it and how long the rest will take."""
        self.progress.advance()
        if found.curve and found.curve[-1][0] == step:
            _, loss, held = found.curve[-1]
            limits = self.options.settings
            left = (limits.steps - step) * found.seconds / step
            if limits.minutes is not None:
                left = min(left, 60 * limits.minutes - max(found.seconds, now() - self.begin))
            after = f", about {seconds(left)} left" if left > 1 and self.options.scope == "model" else ""
            self.progress.note(f"step {step}: loss {loss:.3g}, held-out {held:.3g}{after}")


def _take_weights_of_first(model: Model, world: World) -> None:
    """Each process pruned for itself, with rounding of its own: go on with what the first one has."""
    if world.size == 1:
        return
    for name in float_weights(model, model.index.tensors):
        model.set_array(name, world.array_from_first(model.array(name)))


def _by_model(job: _Job) -> Tuned:
    """Train all weights together."""
    options, dense, start = job.options, job.dense, job.start
    first = next(job.data.feeds())
    with ArrayStore(options.max_memory) as store:
        wanted, maps = compared(dense, job.result, job.layers, start, first, options.threads)
        before = now()
        kinds, task, key = *_kinds_and_task(job, first), options.labels
        loss = Loss(kinds, wanted, maps, options.form, options.custom, task=task, key=key or "")
        names = trainable(job.result, start, loss.names)
        masks = zero_masks(job.result, names)
        view = TorchView(job.result, feeds_from=[start] if start else (), outputs=loss.names, trainable=names)
        check = now() - before  # a session, a run and a view, as in the comparison at the end
        teacher = Taps(dense, loss.names, first, options.threads)
        prefix = Taps(job.result, [start], first, options.threads) if start else None
        make = _Maker(teacher, prefix, store, options)
        batches = make(job.data, changed=True)
        fit(batches, view, loss)
        checkpoint = None
        if options.resume:
            models, samples = (dense, job.result), (job.data, job.held_out)
            settings = (
                options.settings,
                batches.size,
                loss.names,
                options.form,
                options.augment,
                sorted(names),
                (key, task),
            )
            checkpoint = Checkpoint(key_of(models, samples, masks, options.custom, *settings))
        timed = options.settings.minutes is not None
        job.progress.stage("fine-tuning", None if timed else options.settings.steps)
        limits = job.settings(check, names)
        trained = Trainer(
            view,
            loss,
            batches,
            make(job.held_out) if job.held_out is not None else None,
            masks,
            limits,
            world=job.world,
            checkpoint=checkpoint,
            tell=job.tell,
            note=job.progress.note,
        ).run()
    changed = write_back(job.result, view, masks)
    if checkpoint is not None and job.world.rank == 0:
        checkpoint.remove()
    used = label_report(key, task, job.data.labels) if key is not None else None
    return Tuned(trained, changed, wanted, start, labels=used)


def _by_block(job: _Job) -> Tuned:
    """Train block after block."""
    options = job.options
    if options.custom is not None or options.form == "kl":
        raise UsageError("block after block, the values at their ends are compared: there is no other loss")
    names = trainable(job.result, job.start, list(job.result.index.outputs))
    blocks, shared = find_blocks(job.dense, job.result, job.layers, names, job.start)
    job.progress.stage("fine-tuning blocks")
    found = tune_blocks(
        job.dense,
        job.result,
        blocks,
        job.data,
        job.held_out,
        job.settings(0.0, names),
        batch=options.batch,
        threads=options.threads,
        max_memory=options.max_memory,
        world=job.world,
        tell=job.tell,
    )
    changed = tuple(name for _, names in found for name in names)
    ends = tuple(name for block in blocks for name in block.ends)
    trained = merged([trained for trained, _ in found])
    return Tuned(trained, changed, ends, job.start, shared=tuple(sorted(shared)))


class _Maker:
    """Makes training batches out of calibration data."""

    def __init__(self, teacher: Taps, prefix: Taps | None, store: ArrayStore, options: Options) -> None:
        self.teacher, self.prefix, self.store, self.options = teacher, prefix, store, options
        self.made = 0

    def __call__(self, data: CalibrationData, *, changed: bool = False) -> Batches:
        self.made += 1
        made, batches = self.made, data.batches
        kept = [{**batch, **(self.prefix(batch) if self.prefix else {})} for batch in batches]

        def targets_of(number: int) -> Feed:
            """Run the teacher when it is asked for the first time: with augmentation, it may never be."""
            if (made, number, self.teacher.names[0]) not in self.store:
                for name, value in self.teacher(batches[number]).items():
                    self.store.put((made, number, name), value)
            return {name: self.store.get((made, number, name)) for name in self.teacher.names}

        return Batches(
            range(len(kept)),
            kept.__getitem__,
            targets_of,
            size=self.options.batch,
            live=self.live,
            augment=self._change(kept[0], data) if changed else None,
            labels=data.labels,
            whole=must_stay_whole(data),
        )

    def _change(self, feeds: Feed, data: CalibrationData) -> augment.Change | None:
        return augment.make(self.options.augment, feeds, data.labels[0] if data.labels else None)

    def live(self, batch: Feed) -> tuple[Feed, Feed]:
        """Return what the student is fed and what the teacher makes of it."""
        return {**batch, **(self.prefix(batch) if self.prefix else {})}, self.teacher(batch)


def _kinds_and_task(job: _Job, feeds: Feed) -> tuple[dict[str, OutputKind], Task | None]:
    """Return what the outputs mean, and what is to be done with labels."""
    names, key = list(job.dense.index.outputs), job.options.labels
    taps = Taps(job.dense, names, feeds, job.options.threads)
    values = taps(feeds)
    more = ((taps(batch), row_mask(batch)) for batch in job.data.batches[1:])
    kinds = output_kinds({name: values[name] for name in names}, job.dense, mask=row_mask(feeds), more=more)
    classes = any(kind.classes for kind in kinds.values())
    for name, kind in kinds.items():
        if classes and kind.counts and not kind.classes and not _has_rows(values[name], feeds):
            kinds[name] = dataclasses.replace(kind, counts=False)
            job.progress.note(f"output {name!r} is not learnt: it has no row for each sample")
    if key is None or job.options.custom is not None:
        return kinds, None
    return kinds, find_task(key, job.data, job.held_out, values, kinds)


def _has_rows(value: Any, feeds: Feed) -> bool:
    """Whether an output has one row for each sample; what was selected has as many as there are."""
    rows = {len(array) for array in feeds.values() if array.ndim}
    return isinstance(value, np.ndarray) and value.ndim > 0 and len(value) in rows
