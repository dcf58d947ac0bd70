"""Fine-tune one block after the other, each towards the dense model's values at its end.

Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction" (2021);
inputs of a block are the already trained model's, as in the sequential pruning. Only one block and the
values at its two ends are held at a time, and few samples go a long way: every block has its own target.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import DENSE, Streams
from onnxprune.finetune.batches import Batches, Feed, must_stay_whole
from onnxprune.finetune.cuts import cut_points
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.memory import fit
from onnxprune.finetune.train import Settings, Trained, Trainer
from onnxprune.finetune.view import TorchView
from onnxprune.finetune.world import World
from onnxprune.finetune.writeback import write_back, zero_masks
from onnxprune.layers import Layer
from onnxprune.model import Model


def tune_blocks(
    dense: Model,
    student: Model,
    layers: Sequence[Layer],
    train: CalibrationData,
    held_out: CalibrationData | None,
    trainable: set[str],
    settings: Settings,
    *,
    start: str = "",
    batch: int = 16,
    threads: int | None = None,
    max_memory: int = 2**30,
    world: World | None = None,
    tell: Callable[[int, Trained], None] = lambda step, found: None,
) -> list[tuple[str, Trained]]:
    """Train the blocks of ``student`` in place, in graph order; return the end and the training of each.

    Args:
        dense: the teacher.
        student: the pruned model.
        layers: its prunable weights.
        train: samples to learn from.
        held_out: samples that choose the best weights, or None.
        trainable: names of the weights that may change.
        settings: of each block; ``minutes`` are those of all blocks together.
        start: value where training begins, "" for the inputs.
        batch: samples in a training batch.
        threads: of ONNX Runtime.
        max_memory: bytes of values to hold in memory, per model.
        world: the processes that train together.
        tell: called after each step.
    """
    cuts = [name for name in cut_points(student, layers) if name in dense.index.producer]
    if start:
        cuts = cuts[cuts.index(start) :]
    feeds = (*train.batches, *(held_out.batches if held_out is not None else ()))
    masks = zero_masks(student, trainable)
    found = []
    with ArrayStore(max_memory) as kept, ArrayStore(max_memory) as moved:
        teacher = Streams(dense, None, feeds, cuts, kept, threads)
        pupil = Streams(student, None, feeds, cuts, moved, threads)
        ends = cuts if start else ["", *cuts]
        if settings.minutes is not None:
            settings = dataclasses.replace(settings, minutes=settings.minutes / max(len(ends) - 1, 1))
        for before, after in itertools.pairwise(ends):
            gone = ends[: ends.index(before)]
            if before:
                pupil.advance([before], gone)
            teacher.advance([after], gone)
            view = TorchView(student, feeds_from=[before] if before else (), outputs=[after])
            chosen = {n for n, w in view.weights.items() if w.requires_grad} & trainable
            if not chosen:
                continue
            view = TorchView(
                student, feeds_from=[before] if before else (), outputs=[after], trainable=chosen
            )

            def fed(number: int, names: tuple[str, ...] = view.inputs, before: str = before) -> Feed:
                values = {name: feeds[number][name] for name in names if name != before}
                return {**values, before: pupil.value(before, number, DENSE)} if before else values

            def wanted(number: int, after: str = after) -> Feed:
                return {after: teacher.value(after, number, DENSE)}

            split, whole = len(train.batches), must_stay_whole(train)
            loss = Loss({}, (after,))
            learnt = Batches(range(split), fed, wanted, size=batch, whole=whole)
            fit(learnt, view, loss)
            trainer = Trainer(
                view,
                loss,
                learnt,
                Batches(range(split, len(feeds)), fed, wanted) if len(feeds) > split else None,
                masks,
                settings,
                world=world,
                tell=tell,
            )
            found.append((after, trainer.run()))
            write_back(student, view, masks)
    return found
