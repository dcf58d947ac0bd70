from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.search.largest import CLOSED, PATIENCE, TIME, bisect


class Tried:
    """Records the steps; ``best`` is the largest that held."""

    def __init__(self, rule: Callable[[int], float]) -> None:
        self.rule = rule
        self.steps: list[int] = []
        self.held: list[int] = []

    def __call__(self, step: int) -> float:
        self.steps.append(step)
        used = self.rule(step)
        if used <= 1:
            self.held.append(step)
        return used

    @property
    def best(self) -> int:
        return max(self.held, default=0)


def yes_or_no(holds: Callable[[int], bool]) -> Tried:
    """Say no more than whether a step holds."""
    return Tried(lambda step: 0.0 if holds(step) else math.inf)


@given(limit=st.integers(0, 98), highest=st.integers(1, 98))
def test_finds_the_largest_of_a_monotone_rule(limit: int, highest: int) -> None:
    tried = yes_or_no(lambda step: step <= limit)
    assert bisect(tried, highest) == CLOSED
    assert tried.best == min(limit, highest)
    assert len(tried.steps) <= math.ceil(math.log2(highest + 1))
    assert len(set(tried.steps)) == len(tried.steps) and set(tried.steps) <= set(range(1, highest + 1))


@given(st.sets(st.integers(1, 98)), st.integers(1, 98))
def test_what_a_noisy_rule_ends_with_was_tried_and_held(holding: set[int], highest: int) -> None:
    tried = yes_or_no(lambda step: step in holding)
    assert bisect(tried, highest) == CLOSED
    assert tried.best in holding | {0}
    assert tried.best == (tried.held[-1] if tried.held else 0)  # each one that holds is larger than before
    assert tried.best == highest or tried.best + 1 in tried.steps  # and the next one did not


@given(
    limit=st.floats(0.5, 97.5), growth=st.floats(1.01, 3.0), noise=st.lists(st.floats(-0.2, 0.2), min_size=99)
)
def test_a_measure_that_grows_is_followed(limit: float, growth: float, noise: list[float]) -> None:
    tried = Tried(lambda step: growth ** (step - limit))
    assert bisect(tried, 98) == CLOSED
    assert tried.best == math.floor(limit)
    assert len(tried.steps) <= 8  # seven halvings, and one for rounding at the limit itself
    noisy = Tried(lambda step: growth ** (step - limit) + noise[step])
    assert bisect(noisy, 98) == CLOSED
    assert (
        noisy.best in (0, *noisy.held) and len(set(noisy.steps)) == len(noisy.steps) <= 21
    )  # a halving at least every third step


def test_guesses_save_steps() -> None:
    # MiniLM's Spearman at --max-drop 1%: what it lost of what it might, measured
    lost = {49: -0.2, 74: 0.79, 75: 0.9, 76: 0.89, 77: 1.27, 80: 1.66, 86: 2.77}
    tried = Tried(lambda step: lost[step])
    assert bisect(tried, 98) == CLOSED
    assert tried.steps == [49, 74, 86, 76, 77]


def test_a_measure_that_misleads_costs_few_steps() -> None:
    tried = Tried(lambda step: 0.999999 if step <= 90 else 1e9)  # always guessed far too low
    assert bisect(tried, 98) == CLOSED
    assert tried.best == 90 and len(tried.steps) <= 14


def test_always_holds() -> None:
    tried = yes_or_no(lambda step: True)
    assert bisect(tried, 98) == CLOSED
    assert tried.best == 98


def test_never_holds() -> None:
    tried = yes_or_no(lambda step: False)
    assert bisect(tried, 98) == CLOSED
    assert tried.best == 0 and tried.steps == [49, 24, 12, 6, 3, 1]


@pytest.mark.parametrize(
    ("patience", "steps"), [(1, [49, 74]), (2, [49, 74, 61]), (9, [49, 74, 61, 55, 52, 50])]
)
def test_patience_ends_it_once_something_held(patience: int, steps: list[int]) -> None:
    tried = yes_or_no(lambda step: step <= 49)
    assert bisect(tried, 98, patience=patience) == (CLOSED if patience == 9 else PATIENCE)
    assert tried.steps == steps


def test_patience_does_not_end_a_search_that_has_found_nothing() -> None:
    tried = yes_or_no(lambda step: step <= 2)
    assert bisect(tried, 98, patience=1) == CLOSED
    assert tried.best == 2


def test_time_ends_it_after_the_first_step_at_least() -> None:
    tried = yes_or_no(lambda step: True)
    assert bisect(tried, 98, expired=lambda: len(tried.steps) >= 3) == TIME
    assert len(tried.steps) == 3
    tried = yes_or_no(lambda step: True)
    assert bisect(tried, 98, expired=lambda: True) == TIME
    assert tried.steps == [49]
