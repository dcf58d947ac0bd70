"""What a training run is asked for, and what it did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxprune.finetune.rates import USUAL

NO_TIME = 1e-9  # minutes that are over at once: there is one step


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train.

    Attributes:
        steps: updates of the weights at most.
        minutes: stop after this time at the latest; the learning rate falls with what ends the run first.
        lr: largest step of a weight, as a share of the root mean square of its tensor; None: ``default``.
        default: rate to begin with where none was given; it makes way for lower ones when the loss runs away.
        clip: largest norm of the gradient, in units of its running mean.
        seed: of the batches.
    """

    steps: int = 300
    minutes: float | None = None
    lr: float | None = None
    default: float = USUAL
    clip: float = 2.0
    seed: int = 0


@dataclass
class Trained:
    """What a run did.

    Attributes:
        steps: updates made.
        best: step whose weights were kept; 0 when all others are likely worse than the first ones.
        before: held-out loss before, as :meth:`onnxprune.finetune.judge.Judge.losses` has it.
        after: held-out loss of the weights that were kept.
        lr: learning rate that was used.
        skipped: steps without an update, because the gradient was NaN or infinite.
        seconds: of wall time.
        curve: (step, training loss, held-out loss).
    """

    steps: int = 0
    best: int = 0
    before: float = math.nan
    after: float = math.nan
    lr: float = math.nan
    skipped: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)


def merged(blocks: Sequence[Trained]) -> Trained:
    """Sum up the training of one block or more: steps and seconds added, losses averaged."""
    count = len(blocks)
    return Trained(
        steps=sum(block.steps for block in blocks),
        best=max(block.best for block in blocks),
        before=sum(block.before for block in blocks) / count,
        after=sum(block.after for block in blocks) / count,
        skipped=sum(block.skipped for block in blocks),
        seconds=sum(block.seconds for block in blocks),
    )
