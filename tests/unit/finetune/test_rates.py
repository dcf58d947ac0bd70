"""The cycle of the learning rate, the search for the best one, and the size of a step of each tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.finetune.rates import (
    FIRST,
    LOWEST,
    RATES,
    WARMUP,
    best_rate,
    cycle,
    learning_scales,
    trial_steps,
)


def test_cycle_rises_then_falls() -> None:
    values = [cycle(p) for p in np.linspace(0, 1, 101)]
    top = int(np.argmax(values))
    assert top == round(100 * WARMUP)
    assert values[top] == pytest.approx(1)
    assert values[0] == values[-1] == pytest.approx(LOWEST)
    assert (np.diff(values[:top]) > 0).all()
    assert (np.diff(values[top:]) < 0).all()


def test_the_walk_over_the_rates() -> None:
    asked: list[float] = []

    def outcome(best: float, rate: float) -> float:
        asked.append(rate)
        return float(abs(np.log(rate / best)))

    for best in RATES:
        asked.clear()
        found = best_rate(RATES, FIRST, lambda rate, best=best: outcome(best, rate), lambda a, b: a > b)  # type: ignore[misc]
        assert found == best
        assert len(asked) <= 4
        assert len(set(asked)) == len(asked)


def test_a_rate_that_may_be_better_is_not_enough() -> None:
    losses = dict(zip(RATES, (0.9, 1.0, 1.1, 0.2), strict=True))
    for room, wanted in ((0.05, 0), (0.2, 1)):
        found = best_rate(RATES, FIRST, losses.__getitem__, lambda a, b, room=room: a > b + room)  # type: ignore[misc]
        assert found == RATES[wanted]


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


def test_trials_are_short() -> None:
    assert [trial_steps(steps) for steps in (10, 300, 10_000)] == [8, 30, 300]
    assert [trial_steps(10_000, affordable) for affordable in (2.0, 40.4, 1e9)] == [8, 40, 300]
