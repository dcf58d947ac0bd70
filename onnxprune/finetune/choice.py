"""Which weights of a training run are kept: those that held-out samples like best, as far as few can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onnxprune.finetune.judge import LIKELY, NOTHING, Losses
from onnxprune.finetune.world import World

MORE = 1.25  # times the first held-out loss is worse, whatever its scatter


class Choice:
    """Keeps a copy of the best weights.

    Few held-out samples say little: of an OCR model the loss on 32 lines was 0.0595 before and 0.0610 after
    training, 0.2 standard errors more, the divergence on 400 other lines 0.125 and 0.091. Training lowered
    that of other samples wherever 32 did not speak against it by more than one error. So the last weights,
    where the learning rate has come to rest, are kept unless they are surely worse than the best ones or
    likely worse than the first ones; lower losses before are half luck: of the same model the accuracy on
    other lines rose to the last step, while the held-out loss went up and down by a fifth.

    Attributes:
        first: held-out losses of the weights as they came.
        best: of what is kept.
        kept: weight name -> the values that are kept.

    Args:
        weights: the weights as they come.
        world: the processes that train together: what the first one decides, all do.
    """

    def __init__(self, weights: Mapping[str, Tensor], world: World) -> None:
        self.weights, self.world = weights, world
        self.first = self.best = NOTHING
        self.kept = {name: weight.detach().clone() for name, weight in weights.items()}
        self._start = {name: value.clone() for name, value in self.kept.items()}

    def begin(self, held: Losses) -> None:
        """Take ``held`` as the losses of the weights as they came."""
        self.first = self.best = held

    def offer(self, held: Losses, *, last: bool) -> bool:
        """Keep the weights as they are now if they deserve it; say whether they do.

        Args:
            held: their losses.
            last: True when the learning rate has come to rest.
        """
        if self._surely_worse(held) or self._harmed(held) if last else not held.mean < self.best.mean:
            return False
        self.best = held
        for name, weight in self.weights.items():
            self.kept[name].copy_(weight.detach())
        return True

    def restore(self) -> None:
        """Give the weights the values that are kept."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(self.kept[name])

    def settle(self) -> bool:
        """Give the weights what is kept, or their first values if that is likely worse; False for those."""
        gained = not self._harmed(self.best)
        if not gained:
            self.kept, self.best = self._start, self.first
        self.restore()
        return gained

    def state(self) -> dict[str, Any]:
        """Return what :meth:`resume` needs."""
        return {"kept": self.kept, "best": _packed(self.best), "first": _packed(self.first)}

    def resume(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from the state of a run that began with the same weights."""
        self.kept = {name: value.to(device) for name, value in state["kept"].items()}
        self.best, self.first = _unpacked(state["best"]), _unpacked(state["first"])

    def _surely_worse(self, held: Losses) -> bool:
        return bool(self.world.agreed(float(held.worse_than(self.best))))

    def _harmed(self, held: Losses) -> bool:
        likely = held.worse_than(self.first, LIKELY) or not held.mean <= MORE * self.first.mean
        return bool(self.world.agreed(float(likely)))


def _packed(losses: Losses) -> tuple[Tensor, Tensor, float]:
    return torch.from_numpy(losses.values), torch.from_numpy(losses.rows), losses.mean


def _unpacked(state: tuple[Tensor, Tensor, float]) -> Losses:
    values, rows, mean = state
    return Losses(values.numpy(), rows.numpy(), mean)
