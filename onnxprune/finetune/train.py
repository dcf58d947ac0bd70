"""The training loop: Adam, one cycle of the learning rate, masks held, the best weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxprune.errors import ModelError
from onnxprune.finetune.adam import Adam
from onnxprune.finetune.batches import Batches
from onnxprune.finetune.checkpoint import Checkpoint
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.view import TorchView
from onnxprune.finetune.world import World

WARMUP = 0.1  # share of the cycle in which the learning rate rises
LOWEST = 0.01  # of the learning rate, at both ends of the cycle
BETAS = (0.9, 0.99)  # a run has hundreds of steps: the usual 0.999 would not forget the first ones
EVALUATIONS = 16  # of the held-out loss, in one run
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # tried from the middle on, towards the better side
TRIAL = 0.05  # of the steps, for each
SHORTEST_TRIAL, LONGEST_TRIAL = 8, 25  # steps
NOISE = 0.1  # of the held-out loss
DIVERGED = 4.0  # times the first held-out loss: stop and take the best weights
FLOOR = 1.0  # a vector of zeros learns as if its values were this share of the typical weight


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train.

    Attributes:
        steps: updates of the weights.
        minutes: stop after this time; the learning rate falls with the time, then, not with the steps.
        lr: largest step of a weight, as a share of the root mean square of its tensor; None: the best of
            some short trials.
        clip: largest norm of the gradient, in units of its running mean.
        seed: of the batches.
    """

    steps: int = 300
    minutes: float | None = None
    lr: float | None = None
    clip: float = 2.0
    seed: int = 0


@dataclass
class Trained:
    """What a run did.

    Attributes:
        steps: updates made.
        best: step with the lowest held-out loss; 0 when training did not help.
        before: held-out loss before.
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


def cycle(progress: float) -> float:
    """Return the learning rate at ``progress`` (0 to 1): linear warm-up, then half a cosine.

    Source: Smith & Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates" (2018), with the cosine that torch's ``OneCycleLR`` uses.
    """
    if progress < WARMUP:
        return LOWEST + (1 - LOWEST) * progress / WARMUP
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * min((progress - WARMUP) / (1 - WARMUP), 1)))


class Trainer:
    """Trains the weights of a view.

    Args:
        view: the student.
        loss: what is minimised.
        train: the batches to learn from.
        held_out: the batches that choose the best weights; None: those to learn from do.
        masks: weight name -> True where it may change; the rest stays exactly zero.
        settings: how long and how fast.
        world: the processes that train together.
        checkpoint: where to continue from and to save to.
        note: told when a killed run goes on.
        tell: called after each step with what was done of ``settings.steps`` and the held-out loss.
    """

    def __init__(
        self,
        view: TorchView,
        loss: Loss,
        train: Batches,
        held_out: Batches | None,
        masks: Mapping[str, NDArray[np.bool_]],
        settings: Settings,
        *,
        world: World | None = None,
        checkpoint: Checkpoint | None = None,
        tell: Callable[[int, Trained], None] = lambda step, found: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.note = note
        self.view, self.loss, self.train, self.held_out = view, loss, train, held_out
        self.settings, self.world, self.checkpoint, self.tell = settings, world or World(), checkpoint, tell
        self.device = self.world.device
        view.to(self.device)
        for weight in view.parameters():
            weight.data = quick_form(weight.data)
        self.weights = {name: weight for name, weight in view.weights.items() if weight.requires_grad}
        self.masks = {
            name: quick_form(torch.from_numpy(mask).to(self.device))
            for name, mask in masks.items()
            if name in self.weights
        }
        self.scales = learning_scales(self.weights, self.masks)
        self.optimizer = Adam(self.weights, BETAS)
        self.lr = settings.lr or 0.0
        self.found = Trained()
        self.kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.norm = 0.0  # running mean of the gradient's norm
        self.random = np.random.default_rng(settings.seed)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.units: list[Any] = []

    def run(self) -> Trained:
        """Train, put the best weights into the view, and say what happened.

        Raises:
            ModelError: when the loss is not a number before the first step.
        """
        self.world.from_first(self.weights.values())
        if not self._resume():
            self.found.before = self.found.after = self._held_out_loss()
            self.found.lr = self.settings.lr or self._best_rate()
            self.found.skipped = 0  # in the trials
        else:
            self.note(f"going on from step {self.found.steps}")
        self.lr = self.found.lr
        spent, begin = self.found.seconds, time.monotonic()
        while (progress := self._progress()) < 1.0:
            value = self._step(progress)
            self.found.steps += 1
            self.found.seconds = spent + time.monotonic() - begin
            ended = self._progress() >= 1.0
            if ended or self.found.steps % max(1, self.settings.steps // EVALUATIONS) == 0:
                held = self._held_out_loss()
                self.found.curve.append((self.found.steps, value, held))
                self._keep(held, last=ended)
                if not held < DIVERGED * self.found.before:
                    break
            self.tell(self.found.steps, self.found)
            if self.checkpoint is not None and self.world.rank == 0:
                self.checkpoint.save(self._state)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(self.kept[name])
        return self.found

    def _best_rate(self) -> float:
        """Return the rate whose short trial, a whole cycle, ends with the lowest loss; undo the trials."""
        start = {name: weight.detach().clone() for name, weight in self.weights.items()}
        steps = min(max(SHORTEST_TRIAL, round(TRIAL * self.settings.steps)), LONGEST_TRIAL)

        def outcome(rate: float) -> float:
            self.random = np.random.default_rng(self.settings.seed)
            self.generator.manual_seed(self.settings.seed)
            self.units, self.norm, self.lr = [], 0.0, rate
            for step in range(steps):
                self._step((step + 0.5) / steps)
            loss = self._held_out_loss()
            self.optimizer.reset()
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(start[name])
            return loss if math.isfinite(loss) else math.inf

        found = lowest(RATES, outcome)
        self.random = np.random.default_rng(self.settings.seed)
        self.generator.manual_seed(self.settings.seed)
        self.units, self.norm = [], 0.0
        return found

    def _progress(self) -> float:
        done = self.found.steps / max(self.settings.steps, 1)
        if self.settings.minutes is not None:
            done = self.found.seconds / (60 * self.settings.minutes)
        return done if self.world.size == 1 else self._agreed(done)

    def _agreed(self, done: float) -> float:
        shared = torch.tensor([done], device=self.device)
        self.world.from_first([shared])
        return float(shared)

    def _step(self, progress: float) -> float:
        feeds, teacher, mask = self._next()
        for weight in self.weights.values():
            weight.grad = None
        with self._precision():
            loss = self.loss(self.view(feeds), teacher, feeds, mask)
        torch.autograd.backward(loss)
        gradients = [w.grad for w in self.weights.values() if w.grad is not None]
        self.world.average(gradients)
        for name, chosen in self.masks.items():
            if (gradient := self.weights[name].grad) is not None:
                gradient.mul_(chosen)
        norm = float(nn.utils.clip_grad_norm_(self.weights.values(), self._limit()))
        if not math.isfinite(norm):
            self.found.skipped += 1  # nothing is learnt from such a batch; the report says how many
            return float(loss.detach())
        self.norm = norm if not self.norm else 0.9 * self.norm + 0.1 * min(norm, self._limit())
        rate = self.lr * cycle(progress)
        self.optimizer.step({name: rate * scale for name, scale in self.scales.items()})
        with torch.no_grad():
            for name, chosen in self.masks.items():
                self.weights[name].mul_(chosen)
        return float(loss.detach())

    def _limit(self) -> float:
        return self.settings.clip * self.norm if self.norm else math.inf

    def _next(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        if not self.units:
            self.units = self.train.epoch(self.random)
        return self._on_device(*self.train.get(self.world.share(self.units.pop()), self.generator))

    def _on_device(
        self, feeds: dict[str, Tensor], teacher: dict[str, Tensor], mask: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        def move(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(self.device, non_blocking=True) for name, value in values.items()}

        feeds = {name: quick_form(value) for name, value in move(feeds).items()}
        return feeds, move(teacher), None if mask is None else mask.to(self.device)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_bf16_supported())
        return nullcontext()

    def _held_out_loss(self) -> float:
        """Return the mean loss on the held-out batches (on the training ones when there are none)."""
        batches = self.held_out or self.train
        total, count = 0.0, 0
        with torch.no_grad():
            for unit in batches.in_order():
                feeds, teacher, mask = self._on_device(*batches.get(unit))
                rows = len(next(iter(feeds.values()))) if feeds else 1
                total += float(self.loss(self.view(feeds), teacher, feeds, mask)) * rows
                count += rows
        value = total / max(count, 1)
        if not self.found.steps and not math.isfinite(value):
            raise ModelError(
                f"the loss before training is {value}: the model or the teacher gives NaN or infinity",
                "check the data, or choose another --loss",
            )
        return value

    def _keep(self, held: float, *, last: bool) -> None:
        """Keep the weights with the lowest held-out loss; the last ones also if noise may be the difference.

        The learning rate has come to rest then, while earlier minima over few samples are half luck.
        """
        if not held < self.found.after * (1 + NOISE if last and held < self.found.before else 1):
            return
        self.found.best, self.found.after = self.found.steps, held
        for name, weight in self.weights.items():
            self.kept[name].copy_(weight.detach())

    def _state(self) -> dict[str, Any]:
        return {
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "kept": self.kept,
            "optimizer": self.optimizer.state(),
            "found": vars(self.found),
            "norm": self.norm,
            "random": self.random.bit_generator.state,
            "generator": self.generator.get_state(),
            "units": self.units,
        }

    def _resume(self) -> bool:
        state = self.checkpoint.load() if self.checkpoint is not None else None
        # All or none: a process that began anew would wait for others that do not
        if not self.world.everyone(state is not None) or state is None:
            return False
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.kept = {name: value.to(self.device) for name, value in state["kept"].items()}
        self.optimizer.restore(state["optimizer"])
        self.found = Trained(**state["found"])
        self.norm = state["norm"]
        self.random.bit_generator.state = state["random"]
        self.generator.set_state(state["generator"])
        self.units = state["units"]
        return True


def lowest(rates: Sequence[float], outcome: Callable[[float], float]) -> float:
    """Return the rate with the lowest outcome, walking from the middle while it gets better."""
    middle = len(rates) // 2
    found = {middle: outcome(rates[middle])}
    for direction in (-1, 1):
        position = middle + direction
        while 0 <= position < len(rates):
            found[position] = outcome(rates[position])
            if found[position] > found[position - direction]:
                break
            position += direction
        if min(found, key=found.__getitem__) != middle:
            break
    return rates[min(found, key=found.__getitem__)]


def quick_form(value: Tensor) -> Tensor:
    """Return images and kernels with their channels last in memory: convolutions train 1.4x faster so."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def learning_scales(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the root mean square of each tensor's nonzero values: what a step is measured by.

    Adam moves every weight by about the learning rate, and tensors of one model differ a hundredfold.
    Vectors (biases, scales) take a share of the typical matrix at least, since many begin at zero.
    """

    def size(weight: Tensor) -> float:
        count = int(torch.count_nonzero(weight))
        return math.sqrt(float(weight.detach().double().square().sum()) / count) if count else 0.0

    sizes = {name: size(weight) for name, weight in weights.items()}
    matrices = sorted(s for n, s in sizes.items() if weights[n].ndim > 1 and s) or [1.0]
    least = FLOOR * matrices[len(matrices) // 2]
    return {name: max(s, least) if weights[name].ndim <= 1 else s or least for name, s in sizes.items()}
