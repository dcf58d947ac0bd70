"""Our Adam is torch's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from onnxprune.finetune.adam import Adam

BETAS = (0.9, 0.99)


def gradients(step: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(step)
    return [torch.randn(4, 3, generator=random), 1e-3 * torch.randn(5, generator=random)]


@pytest.mark.parametrize("restart", [False, True])
def test_the_steps_of_torch(restart: bool) -> None:
    ours = {"w": torch.ones(4, 3, requires_grad=True), "b": torch.zeros(5, requires_grad=True)}
    theirs = [weight.detach().clone().requires_grad_() for weight in ours.values()]
    rates = {"w": 0.1, "b": 0.02}
    groups = [{"params": [w], "lr": lr} for w, lr in zip(theirs, rates.values(), strict=True)]
    optimizer = torch.optim.Adam(groups, betas=BETAS)
    adam = Adam(ours, BETAS)
    for step in range(20):
        for values in (list(ours.values()), theirs):
            for weight, gradient in zip(values, gradients(step), strict=True):
                weight.grad = gradient.clone()
        if restart and step == 9:
            state, adam = adam.state(), Adam(ours, BETAS)
            adam.restore(state)
        adam.step(rates)
        optimizer.step()
    for a, b in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_weights_without_a_gradient_stay() -> None:
    weights = {"a": torch.ones(2, requires_grad=True), "b": torch.ones(2, requires_grad=True)}
    weights["a"].grad = torch.ones(2)
    adam = Adam(weights, BETAS)
    adam.step({"a": 0.5, "b": 0.5})
    assert torch.equal(weights["b"], torch.ones(2))
    torch.testing.assert_close(weights["a"], torch.full((2,), 0.5))
    adam.reset()
    adam.step({"a": 0.5, "b": 0.5})  # as the first one again
    torch.testing.assert_close(weights["a"], torch.zeros(2), atol=1e-6, rtol=0)


def test_training_does_not_load_the_compiler_of_torch() -> None:
    code = "import sys; import onnxprune.finetune.distill; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
