"""Adam with a rate of its own for each tensor.

Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015). torch's own optimizers load its
compiler when the first one is made: three seconds that short runs feel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-8


class Adam:
    """Moving averages of the gradients of named weights and of their squares.

    Args:
        weights: what :meth:`step` changes; one without a gradient stays as it is.
        betas: how much of the averages is kept at each step.
    """

    def __init__(self, weights: Mapping[str, Tensor], betas: tuple[float, float]) -> None:
        self.weights, self.betas = weights, betas
        self.reset()

    def reset(self) -> None:
        """Forget all gradients."""
        self.steps: dict[str, int] = {}
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, rates: Mapping[str, float]) -> None:
        """Move each weight by about its rate, against its gradient."""
        a, b = self.betas
        for name, weight in self.weights.items():
            gradient = weight.grad
            if gradient is None:
                continue
            if name not in self.first:
                self.steps[name] = 0
                self.first[name], self.second[name] = torch.zeros_like(weight), torch.zeros_like(weight)
            self.steps[name] += 1
            count, m, v = self.steps[name], self.first[name], self.second[name]
            m.lerp_(gradient, 1 - a)
            v.mul_(b).addcmul_(gradient, gradient, value=1 - b)
            size = v.sqrt().div_((1 - b**count) ** 0.5).add_(EPSILON)
            weight.addcdiv_(m, size, value=-rates[name] / (1 - a**count))

    def state(self) -> dict[str, Any]:
        """Return everything that :meth:`restore` needs."""
        return {"steps": self.steps, "first": self.first, "second": self.second}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self.steps = dict(state["steps"])
        for held, name in ((self.first, "first"), (self.second, "second")):
            held.clear()
            held.update({key: value.to(self.weights[key].device) for key, value in state[name].items()})
