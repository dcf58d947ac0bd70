"""Fine-tune one block after the other, each towards the dense model's values at its end.

Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction" (2021);
inputs of a block are the already trained model's, as in the sequential pruning. Only one block and the
values at its two ends are held at a time, and few samples go a long way: every block has its own target.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import DENSE, Streams
from onnxprune.clock import now
from onnxprune.errors import ModelError
from onnxprune.finetune.batches import Batches, Feed, must_stay_whole
from onnxprune.finetune.cuts import cut_points
from onnxprune.finetune.dtypes import FLOATS
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.memory import fit
from onnxprune.finetune.parameters import default_trained
from onnxprune.finetune.train import Trainer
from onnxprune.finetune.trained import NO_TIME, Settings, Trained
from onnxprune.finetune.view import TorchView
from onnxprune.finetune.world import World
from onnxprune.finetune.writeback import write_back, zero_masks
from onnxprune.layers import Layer
from onnxprune.model import Model


@dataclass(frozen=True)
class Block:
    """A part of the model that is trained by itself.

    Attributes:
        before: the value it begins at; "" for the inputs of the model.
        ends: the values that are compared with the dense model's.
        weights: names of what is trained.
    """

    before: str
    ends: tuple[str, ...]
    weights: frozenset[str]


def find_blocks(
    dense: Model, student: Model, layers: Sequence[Layer], trainable: Collection[str], start: str = ""
) -> tuple[list[Block], set[str]]:
    """Return the blocks that have something to train, and the weights that several of them share.

    Shared weights are in no block: what one block makes of them would spoil those before it. The last block
    ends at the outputs of the model.

    Raises:
        ModelError: when no block has a weight of its own.
    """
    cuts = [name for name in cut_points(student, layers) if name in dense.index.producer or name == start]
    cuts = cuts[cuts.index(start) + 1 :] if start else cuts
    outputs = [
        name
        for name, info in student.index.outputs.items()
        if info.type.tensor_type.elem_type in FLOATS and name in dense.index.producer
    ]
    ends = [*((name,) for name in cuts), *([tuple(outputs)] if outputs else [])]
    befores = [start, *cuts]
    found = [
        Block(before, after, frozenset(trained_between(student, before, after) & set(trainable)))
        for before, after in zip(befores, ends, strict=False)
    ]
    counts = Counter(name for block in found for name in block.weights)
    shared = {name for name, count in counts.items() if count > 1}
    blocks = [dataclasses.replace(block, weights=block.weights - shared) for block in found]
    blocks = [block for block in blocks if block.weights]
    if not blocks:
        why = f"all of {len(shared)} weights are used in several" if shared else "no weight can be trained"
        raise ModelError(
            f"{student.name} cannot be fine-tuned block by block: of {len(found)} blocks, {why}",
            "--scope model trains all weights together",
        )
    return blocks, shared


def trained_between(model: Model, before: str, ends: Sequence[str]) -> set[str]:
    """Return what a view of one block trains by default."""
    return default_trained(model, feeds_from=[before] if before else (), outputs=ends)


def tune_blocks(
    dense: Model,
    student: Model,
    blocks: Sequence[Block],
    train: CalibrationData,
    held_out: CalibrationData | None,
    settings: Settings,
    *,
    batch: int = 16,
    threads: int | None = None,
    max_memory: int = 2**30,
    world: World | None = None,
    tell: Callable[[int, Trained], None] = lambda step, found: None,
) -> list[tuple[Trained, tuple[str, ...]]]:
    """Train ``blocks`` of ``student`` in place, in their order.

    Args:
        dense: the teacher.
        student: the pruned model.
        blocks: see :func:`find_blocks`.
        train: samples to learn from.
        held_out: samples that choose the best weights, or None.
        settings: of each block; ``minutes`` are those of all blocks together, and begin now.
        batch: samples in a training batch at most.
        threads: of ONNX Runtime.
        max_memory: bytes of values to hold in memory, per model.
        world: the processes that train together.
        tell: called after each step.

    Returns:
        What happened to each block, and the weights that changed.
    """
    feeds = (*train.batches, *(held_out.batches if held_out is not None else ()))
    split, whole = len(train.batches), must_stay_whole(train)
    world, start = world or World(), now()

    def share(blocks: int) -> Settings:
        """Return the settings of the next of so many blocks that are left."""
        if settings.minutes is None:
            return settings
        left = max(settings.minutes - world.agreed(now() - start) / 60, NO_TIME)
        return dataclasses.replace(settings, minutes=left / blocks)

    begins = [block.before for block in blocks if block.before]
    found, gone = [], set[str]()
    with ArrayStore(max_memory) as kept, ArrayStore(max_memory) as moved:
        teacher = Streams(dense, None, feeds, [n for block in blocks for n in block.ends], kept, threads)
        pupil = Streams(student, None, feeds, begins, moved, threads)
        for number, block in enumerate(blocks):
            if block.before:
                pupil.advance([block.before], gone)
            teacher.advance(block.ends, gone)
            gone |= {block.before, *block.ends}
            view = TorchView(
                student,
                feeds_from=[block.before] if block.before else (),
                outputs=block.ends,
                trainable=block.weights,
            )

            def fed(number: int, view: TorchView = view, before: str = block.before) -> Feed:
                values = {name: feeds[number][name] for name in view.inputs if name != before}
                return {**values, before: pupil.value(before, number, DENSE)} if before else values

            def wanted(number: int, ends: tuple[str, ...] = block.ends) -> Feed:
                return {name: teacher.value(name, number, DENSE) for name in ends}

            loss, masks = Loss({}, block.ends), zero_masks(student, block.weights)
            learnt = Batches(range(split), fed, wanted, size=batch, whole=whole)
            fit(learnt, view, loss)
            judged = Batches(range(split, len(feeds)), fed, wanted) if len(feeds) > split else None
            own = share(len(blocks) - number)
            trainer = Trainer(view, loss, learnt, judged, masks, own, world=world, tell=tell)
            found.append((trainer.run(), write_back(student, view, masks)))
    return found
