"""Which weights are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onnxprune.finetune.choice import MORE, Choice
from onnxprune.finetune.judge import Losses
from onnxprune.finetune.world import World

CALM = np.linspace(1, 2, 16)
CHANCE = np.tile([1, -1], 8) * 0.5  # scatter with a standard error of 0.13


def pieces(values: NDArray[np.float64]) -> Losses:
    return Losses(values, np.ones(len(values)), float(values.mean()))


def choice(first: NDArray[np.float64] = CALM) -> tuple[Choice, torch.Tensor]:
    """A choice that began with zeros, and the tensor."""
    weight = torch.zeros(3)
    found = Choice({"w": weight}, World())
    found.begin(pieces(first))
    return found, weight


def test_before_the_end_the_lowest_loss_is_kept() -> None:
    found, weight = choice()
    for value, loss, kept in ((1, CALM - 0.1, True), (2, CALM - 0.05, False), (3, CALM - 0.2, True)):
        weight.fill_(value)
        assert found.offer(pieces(loss), last=False) is kept
    weight.fill_(4)
    found.restore()
    assert weight.tolist() == [3, 3, 3]
    assert found.settle() and weight.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("last", "kept"),
    [
        (CALM + CHANCE + 0.1, True),  # worse by 0.8 standard errors
        (CALM + CHANCE + 0.2, False),  # than the first ones, by 1.6
        (CALM + 0.01, False),  # by little, but surely
        (CALM - 0.2, True),
    ],
)
def test_the_last_weights_are_kept_unless_likely_worse_than_the_first(
    last: NDArray[np.float64], kept: bool
) -> None:
    found, weight = choice()
    weight.fill_(1)
    assert found.offer(pieces(last), last=True) is kept
    assert found.settle()
    assert weight.tolist() == [float(kept)] * 3


def test_the_last_weights_do_not_replace_surely_better_ones() -> None:
    for better, kept in ((0.3, False), (0.05, True)):  # surely, or within two standard errors
        found, weight = choice()
        weight.fill_(1)
        assert found.offer(pieces(CALM - better), last=False)
        weight.fill_(2)
        assert found.offer(pieces(CALM + CHANCE - 0.01), last=True) is kept


def test_last_weights_that_are_likely_worse_than_the_start_do_not_replace_better_ones() -> None:
    found, weight = choice()
    weight.fill_(1)
    assert found.offer(pieces(CALM - 0.02), last=False)
    weight.fill_(2)
    assert not found.offer(pieces(CALM + 0.2 + CHANCE), last=True)
    assert found.settle() and weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("worst", "kept"), [(70.0, False), (8.0, False), (3.0, True)])
def test_one_sample_that_ran_away_is_no_mere_scatter(worst: float, kept: bool) -> None:
    last = np.full(16, 0.9)
    last[3] = worst
    found, _ = choice(np.ones(16))
    assert bool(last.mean() <= MORE) is kept  # never worse by more than one standard error
    assert found.offer(pieces(last), last=True) is kept


def test_a_resumed_choice_goes_on() -> None:
    found, weight = choice()
    weight.fill_(1)
    found.offer(pieces(CALM - 0.1), last=False)
    state = found.state()
    again, other = choice(CALM + 9)  # of the same weights, in another process
    again.resume(state, torch.device("cpu"))
    assert again.best.mean == found.best.mean and again.first.mean == found.first.mean
    assert not again.offer(pieces(CALM - 0.05), last=False)
    again.restore()
    assert other.tolist() == [1, 1, 1]
    again.best = pieces(CALM + 9)  # worse than the first ones: those come back
    assert not again.settle() and other.tolist() == [0, 0, 0]
