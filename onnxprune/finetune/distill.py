"""Give a pruned model its accuracy back: the dense model teaches it, on inputs without labels.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), with the values at the ends of
the blocks compared as well (Romero et al., "FitNets", 2015). Masks are held, so the sparsity stays exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.store import ArrayStore
from onnxprune.errors import ModelError, UsageError
from onnxprune.finetune import augment
from onnxprune.finetune.batches import Batches, Feed, Taps, must_stay_whole, tensors
from onnxprune.finetune.blocks import tune_blocks
from onnxprune.finetune.checkpoint import Checkpoint
from onnxprune.finetune.cuts import cut_points, features
from onnxprune.finetune.difference import difference
from onnxprune.finetune.losses import CustomLoss, Loss
from onnxprune.finetune.memory import fit
from onnxprune.finetune.parameters import default_trained
from onnxprune.finetune.train import Settings, Trained, Trainer
from onnxprune.finetune.view import TorchView, unsupported
from onnxprune.finetune.world import World
from onnxprune.finetune.writeback import write_back, zero_masks
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.outputs import OutputKind, output_kind
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
        augment: changes of the samples, see :mod:`onnxprune.finetune.augment`.
        scope: ``model``, or ``block`` for one block after the other.
        threads: of torch and ONNX Runtime.
        max_memory: bytes of the teacher's values to hold in memory.
        resume: keep a checkpoint in the user's cache, and go on from one.
    """

    settings: Settings = field(default_factory=Settings)
    batch: int = 16
    form: str = "auto"
    custom: CustomLoss | None = None
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
    """

    trained: Trained
    weights: tuple[str, ...]
    features: tuple[str, ...]
    start: str
    difference: float


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
    progress = progress or NullProgress()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    result = pruned.copy()
    start = _start(pruned, layers)
    with World() as world:
        job = _Job(dense, pruned, result, layers, data, held_out, options, start, world, progress)
        trained, changed, compared = _by_block(job) if options.scope == "block" else _by_model(job)
    outputs = dict.fromkeys((*result.index.outputs, *compared))
    view = TorchView(result, feeds_from=[start] if start else (), outputs=list(outputs), trainable=())
    apart = difference(result, view, start, next(data.feeds()), options.threads)
    return result, Tuned(trained, changed, compared, start, apart)


@dataclass(frozen=True)
class _Job:
    """The arguments of :func:`finetune`, and what all ways of training need."""

    dense: Model
    pruned: Model
    result: Model
    layers: Sequence[Layer]
    data: CalibrationData
    held_out: CalibrationData | None
    options: Options
    start: str
    world: World
    progress: Progress

    def tell(self, step: int, found: Trained) -> None:
        """Count a step; when the held-out loss is new, say it and how long the rest will take."""
        self.progress.advance()
        if found.curve and found.curve[-1][0] == step:
            _, loss, held = found.curve[-1]
            left = (self.options.settings.steps - step) * found.seconds / step
            if self.options.settings.minutes is not None:
                left = 60 * self.options.settings.minutes - found.seconds
            after = f", about {seconds(left)} left" if left > 1 and self.options.scope == "model" else ""
            self.progress.note(f"step {step}: loss {loss:.3g}, held-out {held:.3g}{after}")


Found = tuple[Trained, tuple[str, ...], tuple[str, ...]]  # what happened, changed weights, compared values


def _by_model(job: _Job) -> Found:
    options, dense, start = job.options, job.dense, job.start
    first = next(job.data.feeds())
    with ArrayStore(options.max_memory) as store:
        wanted = _features(job, first)
        loss = Loss(_kinds(dense, first, options), wanted, options.form, options.custom)
        names = _trainable(job.result, start, loss.names)
        masks = zero_masks(job.result, names)
        view = TorchView(job.result, feeds_from=[start] if start else (), outputs=loss.names, trainable=names)
        teacher = Taps(dense, loss.names, first, options.threads)
        prefix = Taps(job.pruned, [start], first, options.threads) if start else None
        make = _Maker(teacher, prefix, store, options)
        batches = make(job.data, changed=True)
        fit(batches, view, loss)
        checkpoint = Checkpoint(_key(dense, job.pruned, job.data, options)) if options.resume else None
        job.progress.stage("fine-tuning", options.settings.steps)
        trained = Trainer(
            view,
            loss,
            batches,
            make(job.held_out) if job.held_out is not None else None,
            masks,
            options.settings,
            world=job.world,
            checkpoint=checkpoint,
            tell=job.tell,
            note=job.progress.note,
        ).run()
    changed = write_back(job.result, view, masks)
    if checkpoint is not None and job.world.rank == 0:
        checkpoint.remove()
    return trained, changed, wanted


def _by_block(job: _Job) -> Found:
    options = job.options
    if options.custom is not None or options.form == "kl":
        raise UsageError("block after block, the values at their ends are compared: there is no other loss")
    before = {name: job.pruned.array(name).tobytes() for name in job.pruned.index.tensors}
    names = _trainable(job.result, job.start, list(job.result.index.outputs))
    job.progress.stage("fine-tuning blocks")
    blocks = tune_blocks(
        job.dense,
        job.result,
        job.layers,
        job.data,
        job.held_out,
        names,
        options.settings,
        start=job.start,
        batch=options.batch,
        threads=options.threads,
        max_memory=options.max_memory,
        world=job.world,
        tell=job.tell,
    )
    changed = tuple(n for n in before if job.result.array(n).tobytes() != before[n])
    return merged([found for _, found in blocks]), changed, tuple(name for name, _ in blocks)


def merged(blocks: Sequence[Trained]) -> Trained:
    """Sum up the training of several blocks: steps and seconds added, losses averaged."""
    if not blocks:
        return Trained(before=0.0, after=0.0)
    count = len(blocks)
    return Trained(
        steps=sum(block.steps for block in blocks),
        best=max(block.best for block in blocks),
        before=sum(block.before for block in blocks) / count,
        after=sum(block.after for block in blocks) / count,
        skipped=sum(block.skipped for block in blocks),
        seconds=sum(block.seconds for block in blocks),
    )


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
            augment=augment.make(self.options.augment, tensors(kept[0])) if changed else None,
            whole=must_stay_whole(data),
        )

    def live(self, batch: Feed) -> tuple[Feed, Feed]:
        """Return what the student is fed and what the teacher makes of it."""
        return {**batch, **(self.prefix(batch) if self.prefix else {})}, self.teacher(batch)


def _kinds(dense: Model, feeds: Feed, options: Options) -> dict[str, OutputKind]:
    names = list(dense.index.outputs)
    values = Taps(dense, names, feeds, options.threads)(feeds)
    return {name: output_kind(name, values[name], dense) for name in names}


def _start(model: Model, layers: Sequence[Layer]) -> str:
    """Return the first value behind which every node can be trained; "" when all can.

    Raises:
        ModelError: when there is no such value; the nodes are named.
    """
    gaps = unsupported(model)
    if not gaps:
        return ""
    for name in cut_points(model, layers):
        if not unsupported(model, feeds_from=[name]):
            return name
    listed = "; ".join(str(gap) for gap in gaps[:3])
    raise ModelError(
        f"{model.name} cannot be fine-tuned: {listed}"
        + (f"; and {len(gaps) - 3} more" if len(gaps) > 3 else ""),
        "leave --finetune out: pruning itself works",
    )


def _features(job: _Job, feeds: Feed) -> tuple[str, ...]:
    """Values to compare: those that both models have, in the same shape, behind the start."""
    dense, pruned, start = job.dense, job.pruned, job.start
    position = pruned.index.producer
    begin = position[start] if start else -1
    names = [
        name
        for name in features(pruned, job.layers)
        if name in dense.index.producer and position[name] > begin
    ]
    if not names:
        return ()
    wanted, found = (Taps(model, names, feeds, job.options.threads)(feeds) for model in (dense, pruned))
    return tuple(name for name in names if wanted[name].shape == found[name].shape)


def _trainable(model: Model, start: str, outputs: Sequence[str]) -> set[str]:
    """Return what a view trains by default but tables: few samples say nothing about most of their rows."""
    names = default_trained(model, feeds_from=[start] if start else (), outputs=outputs)
    nodes, uses = model.graph.node, model.index.uses
    tables = {
        name
        for name in names
        if all(nodes[use.index].op_type == "Gather" and use.slot == 0 for use in uses.get(name, ()))
    }
    return names - tables


def _key(dense: Model, pruned: Model, data: CalibrationData, options: Options) -> str:
    state = hashlib.sha256()
    for model in (dense, pruned):
        for name in sorted(model.index.tensors):
            state.update(name.encode())
            state.update(model.index.tensors[name].SerializeToString(deterministic=True))
        for node in model.graph.node:
            state.update(node.SerializeToString(deterministic=True))
    state.update(data.digest().encode())
    state.update(
        repr((options.settings, options.batch, options.form, options.augment, options.custom)).encode()
    )
    return state.hexdigest()[:32]
