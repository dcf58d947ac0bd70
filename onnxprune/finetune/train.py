"""The training loop: Adam, one cycle of the learning rate, masks held, the best weights kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxprune.clock import now
from onnxprune.errors import ModelError
from onnxprune.finetune.adam import Adam
from onnxprune.finetune.batches import Batches, Tensors
from onnxprune.finetune.checkpoint import Checkpoint
from onnxprune.finetune.choice import Choice
from onnxprune.finetune.effects import BATCHES, Effects, calmed
from onnxprune.finetune.judge import Judge, Losses, quick_form
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.rates import cycle, learning_scales
from onnxprune.finetune.trained import Settings, Trained
from onnxprune.finetune.view import TorchView
from onnxprune.finetune.world import World

SLOWER, LOWEST_RATE = 0.3, 1e-5  # of a rate that runs away; the lowest that makes way for another
BETAS = (0.9, 0.99)  # a run has hundreds of steps: the usual 0.999 would not forget the first ones
EVALUATIONS = 16  # of the held-out loss, in one run
MEASURING = 0.1  # of the minutes, for the effects of steps
DIVERGED = 4.0  # times the first held-out loss: the rate was too high


class Trainer:
    """Trains the weights of a view.

    Args:
        view: the student.
        loss: what is minimised.
        train: the batches to learn from.
        held_out: the batches that choose the best weights; None: those to learn from do.
        masks: weight name -> True where it may change; the rest stays exactly zero.
        settings: how long and how fast; the minutes begin now.
        world: the processes that train together.
        checkpoint: where to continue from and to save to.
        note: told what the user should know: that a killed run goes on, that steps are smaller.
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
        self.train, self.held_out, self.settings = train, held_out, settings
        self.world, self.checkpoint, self.tell = world or World(), checkpoint, tell
        self.device, self.judge = self.world.device, Judge(view, loss, self.world)
        view.to(self.device)
        for weight in view.parameters():
            weight.data = quick_form(weight.data)
        self.weights = {name: weight for name, weight in view.weights.items() if weight.requires_grad}
        # Each process pruned for itself, with rounding of its own: what the first one has counts
        self.world.from_first(self.weights.values())
        self.masks = {name: quick_form(mask) for name, mask in self._shared(masks).items()}
        self.scales = learning_scales(self.weights, self.masks)
        self.optimizer = Adam(self.weights, BETAS)
        self.lr = settings.lr or 0.0
        self.found = Trained()
        self.choice = Choice(self.weights, self.world)
        self.norm = 0.0  # running mean of the gradient's norm
        self.random = np.random.default_rng(settings.seed)
        self.changes = np.random.default_rng(settings.seed)  # of the samples
        self.units: list[Any] = []
        self.begin = now()
        self.prelude = 0.0  # seconds before the cycle: of measuring, of cycles that were broken off
        self.passed = 0  # steps before it
        self._restart()

    def run(self) -> Trained:
        """Train, put the best weights into the view, and say what happened.

        Raises:
            ModelError: when the loss is not a number before the first step, or no weight changes it.
        """
        if not self._resume():
            self.choice.begin(self._held_out())
            self.found.before = self.found.after = found = self.choice.first.mean
            if not math.isfinite(found):
                raise ModelError(
                    f"the loss before training is {found}: the model or the teacher gives NaN or infinity",
                    "check the data, or choose another --loss",
                )
            self.found.lr = self.settings.lr or self.settings.default
            self._calm()
            self.found.seconds = self.prelude = now() - self.begin
        else:
            self.note(f"going on from step {self.found.steps}")
        self.lr = self.found.lr
        while not self._cycle() and self._slower():
            self.note(f"the held-out loss ran away: going on with a rate of {self.lr:g}")
        if not self.choice.settle():
            self.found.best, self.found.after = 0, self.found.before
        return self.found

    def _cycle(self) -> bool:
        """Train to the end of a cycle of the learning rate; False when the held-out loss ran away before."""
        begin, progress = now() - self.found.seconds, self._progress()
        while progress < 1.0:
            value = self._step(progress)
            self.found.steps += 1
            self.found.seconds = now() - begin
            before, progress = progress, self._progress()
            if progress >= 1.0 or self._due(before, progress):
                held = self._held_out()
                self.found.seconds = now() - begin
                progress = self._progress()
                self.found.curve.append((self.found.steps, value, held.mean))
                if not held.mean < DIVERGED * self.found.before:
                    return False
                if self.choice.offer(held, last=progress >= 1.0):
                    self.found.best, self.found.after = self.found.steps, held.mean
            self.tell(self.found.steps, self.found)
            if self.checkpoint is not None and self.world.rank == 0:
                self.checkpoint.save(self._state)
        return True

    def _slower(self) -> bool:
        """Begin a new cycle in what is left, at the best weights and a lower rate.

        What is nearly as good as the teacher learns at lower rates than the usual one: of an OCR model
        with 40 % zeros the held-out loss rose from 0.035 to 0.33 at a rate that was good at 70 %.
        """
        if self.settings.lr is not None or self.lr <= LOWEST_RATE or self._progress() >= 1.0:
            return False
        self.found.lr = self.lr = SLOWER * self.lr
        self.passed, self.prelude, self.norm = self.found.steps, self.found.seconds, 0.0
        self.optimizer.reset()
        self.choice.restore()
        return True

    def _due(self, before: float, after: float) -> bool:
        """Whether the held-out loss is to be looked at, where a step went from ``before`` to ``after``."""
        if self.settings.minutes is None:
            return self.found.steps % max(1, self.settings.steps // EVALUATIONS) == 0
        return math.floor(EVALUATIONS * after) > math.floor(EVALUATIONS * before)

    def _shared(self, masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, Tensor]:
        """Return the first process's masks, on the device; those without zeros are left out there."""
        if self.world.size == 1:
            return {n: torch.from_numpy(m).to(self.device) for n, m in masks.items() if n in self.weights}
        found = {}
        for name, weight in self.weights.items():
            own = masks.get(name, np.ones(tuple(weight.shape), np.bool_))
            mask = torch.from_numpy(np.ascontiguousarray(own, np.uint8)).to(self.device)
            self.world.from_first([mask])
            if not mask.all():
                found[name] = mask.bool()
        return found

    def _restart(self) -> None:
        """Put the order of the samples back to its beginning."""
        self.random = np.random.default_rng(self.settings.seed)
        # Processes share the order of the samples, not what is done to them
        self.changes = np.random.default_rng([self.settings.seed, self.world.rank])
        self.units, self.norm = [], 0.0

    def _calm(self) -> None:
        """Slow down the tensors whose steps would do far more than others' do."""
        effects, begin = Effects(), now()
        for count in range(min(BATCHES, self.settings.steps)):
            if self._late(begin):
                self.note(f"little time: what steps do was measured on {count} of {BATCHES} batches")
                break
            self._gradients(self._next())
            effects.add({name: w.grad for name, w in self.weights.items() if w.grad is not None})
        before, self.scales = self.scales, calmed(self.scales, effects.sizes(self.scales))
        slowed = sum(scale < before[name] for name, scale in self.scales.items())
        if slowed:
            self.note(f"smaller steps for {slowed} of {len(before)} weights: theirs change the outputs most")
        self._restart()

    def _late(self, begin: float) -> bool:
        """Whether measuring since ``begin`` has had its share of the minutes."""
        if self.settings.minutes is None:
            return False
        return self.world.agreed((now() - begin) / (60 * self.settings.minutes)) > MEASURING

    def _progress(self) -> float:
        """Return the share of the run that is done: of the steps, or of the time that is left for the cycle.

        With both limits it is the larger one.
        """
        steps = (self.found.steps - self.passed) / max(self.settings.steps - self.passed, 1)
        if self.settings.minutes is None:
            return steps
        left = max(60 * self.settings.minutes - self.prelude, 1e-9)
        return max(steps, self.world.agreed((self.found.seconds - self.prelude) / left))

    def _step(self, progress: float) -> float:
        loss = self._gradients(self._next())
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

    def _gradients(self, batch: tuple[Tensors, Tensors, Tensor | None]) -> Tensor:
        """Give the weights their gradients of the loss of a batch, zero where they are held; return it."""
        for weight in self.weights.values():
            weight.grad = None
        loss = self.judge(*batch)
        torch.autograd.backward(loss)
        self._average_gradients()
        for name, chosen in self.masks.items():
            if (gradient := self.weights[name].grad) is not None:
                gradient.mul_(chosen)
        return loss

    def _average_gradients(self) -> None:
        if self.world.size == 1:
            return
        for weight in self.weights.values():
            if weight.grad is None:  # other processes' samples may reach it: all must send the same tensors
                weight.grad = torch.zeros_like(weight)
        self.world.average(weight.grad for weight in self.weights.values() if weight.grad is not None)

    def _limit(self) -> float:
        return self.settings.clip * self.norm if self.norm else math.inf

    def _next(self) -> tuple[Tensors, Tensors, Tensor | None]:
        if not self.units:
            self.units = self.train.epoch(self.random)
        return self.train.get(self.world.share(self.units.pop()), self.changes)

    def _held_out(self) -> Losses:
        """Return the losses on the held-out batches (on the training ones when there are none)."""
        return self.judge.losses(self.held_out or self.train)

    def _state(self) -> dict[str, Any]:
        return {
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "choice": self.choice.state(),
            "optimizer": self.optimizer.state(),
            "found": vars(self.found),
            "scales": self.scales,
            "norm": self.norm,
            "prelude": self.prelude,
            "passed": self.passed,
            "random": self.random.bit_generator.state,
            "changes": self.changes.bit_generator.state,
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
        self.choice.resume(state["choice"], self.device)
        self.optimizer.restore(state["optimizer"])
        self.found = Trained(**state["found"])
        self.scales = state["scales"]
        self.norm, self.prelude, self.passed = state["norm"], state["prelude"], state["passed"]
        self.random.bit_generator.state = state["random"]
        if self.world.rank == 0:
            self.changes.bit_generator.state = state["changes"]
        else:  # only the first one's was saved
            self.changes = np.random.default_rng([self.settings.seed, self.world.rank, self.found.steps])
        self.units = state["units"]
        return True
