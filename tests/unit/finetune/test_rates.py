"""The cycle of the learning rate, and the size of a step of each tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.finetune.rates import LOWEST, WARMUP, cycle, learning_scales


def test_cycle_rises_then_falls() -> None:
    values = [cycle(p) for p in np.linspace(0, 1, 101)]
    top = int(np.argmax(values))
    assert top == round(100 * WARMUP)
    assert values[top] == pytest.approx(1)
    assert values[0] == values[-1] == pytest.approx(LOWEST)
    assert (np.diff(values[:top]) > 0).all()
    assert (np.diff(values[top:]) < 0).all()


def test_learning_scales_follow_the_tensors() -> None:
    weights = {
        "big": torch.tensor([[0.0, 3.0], [3.0, 0.0]]),
        "small": torch.full((2, 2), 0.1),
        "bias": torch.zeros(2),
    }
    scales = learning_scales(weights, {})
    assert scales["big"] == pytest.approx(3)  # zeros do not count
    assert scales["small"] == pytest.approx(0.1)
    assert scales["bias"] == pytest.approx(3)  # as the typical matrix, to get away from zero


def test_learning_scales_of_large_tensors_are_finite() -> None:
    scales = learning_scales({"w": torch.full((2, 2), 3e30)}, {})
    assert scales["w"] == pytest.approx(3e30)
