"""Effects of steps: worked by hand, against the Fisher information, and what becomes of the scales."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.finetune.effects import MOST, Effects, calmed


def test_two_batches_by_hand() -> None:
    effects = Effects()
    effects.add({"w": torch.tensor([3.0, -0.5])})
    effects.add({"w": torch.tensor([1.0, 4.0])})  # the step is the sign of the first: (1, -1)
    assert effects.sizes({"w": 2.0}) == {"w": pytest.approx(2 * abs(1 - 4))}
    effects.add({"w": torch.tensor([1.0, 0.0])})  # mean squares (5, 8.125): the step is (1, 4) / their roots
    assert effects.sizes({"w": 1.0})["w"] == pytest.approx(math.sqrt((3**2 + 1 / 5) / 2))


def test_elements_that_push_the_same_way_add_up() -> None:
    torch.manual_seed(0)
    effects, count = Effects(), 64
    for _ in range(200):
        together, apart = torch.randn(1), torch.randn(count)
        effects.add({"together": together.expand(count), "apart": apart})
    sizes = effects.sizes({"together": 1.0, "apart": 1.0})
    assert sizes["together"] / sizes["apart"] == pytest.approx(math.sqrt(count), rel=0.25)


def test_what_has_no_effect_or_no_number_is_left_out() -> None:
    effects = Effects()
    for value in (1.0, math.nan, 1.0):
        effects.add({"still": torch.zeros(2), "odd": torch.tensor([value, 1.0])})
    effects.add({"once": torch.ones(2)})
    assert effects.sizes({"still": 1.0, "odd": 1.0, "once": 1.0}) == {"odd": pytest.approx(2.0)}


def test_gradients_that_adam_does_not_see_are_no_steps() -> None:
    effects = Effects()
    effects.add({"w": torch.tensor([1e-24, 1.0])})
    effects.add({"w": torch.ones(2)})
    assert effects.sizes({"w": 1.0})["w"] == pytest.approx(1.0, rel=1e-3)


@given(st.dictionaries(st.text(max_size=2), st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_no_step_does_more_than_the_bound(sizes: dict[str, float]) -> None:
    scales = dict.fromkeys([*sizes, "unknown name"], 0.5)
    found = calmed(scales, sizes)
    middle = sorted(sizes.values())[len(sizes) // 2]
    for name, size in sizes.items():
        assert 0 < found[name] <= scales[name]
        assert size * found[name] / scales[name] <= MOST * middle * (1 + 1e-9)
    assert found["unknown name"] == 0.5
    assert calmed(scales, {}) == scales
