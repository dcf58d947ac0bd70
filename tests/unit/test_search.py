from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.search import CLOSED, PATIENCE, TIME, bisect


class Tried:
    """Records the steps; ``best`` is the largest that held."""

    def __init__(self, rule: object) -> None:
        self.rule, self.steps, self.held = rule, [], []  # type: ignore[var-annotated]

    def __call__(self, step: int) -> bool:
        self.steps.append(step)
        holds = bool(self.rule(step))  # type: ignore[operator]
        if holds:
            self.held.append(step)
        return holds

    @property
    def best(self) -> int:
        return max(self.held, default=0)


@given(limit=st.integers(0, 98), highest=st.integers(1, 98))
def test_finds_the_largest_of_a_monotone_rule(limit: int, highest: int) -> None:
    tried = Tried(lambda step: step <= limit)
    assert bisect(tried, highest) == CLOSED
    assert tried.best == min(limit, highest)
    assert len(tried.steps) <= math.ceil(math.log2(highest + 1))
    assert len(set(tried.steps)) == len(tried.steps) and set(tried.steps) <= set(range(1, highest + 1))


@given(st.sets(st.integers(1, 98)), st.integers(1, 98))
def test_what_a_noisy_rule_ends_with_was_tried_and_held(holding: set[int], highest: int) -> None:
    tried = Tried(lambda step: step in holding)
    assert bisect(tried, highest) == CLOSED
    assert tried.best in holding | {0}
    assert tried.best == (tried.held[-1] if tried.held else 0)  # each one that holds is larger than before
    assert tried.best == highest or tried.best + 1 in tried.steps  # and the next one did not


def test_always_holds() -> None:
    tried = Tried(lambda step: True)
    assert bisect(tried, 98) == CLOSED
    assert tried.best == 98


def test_never_holds() -> None:
    tried = Tried(lambda step: False)
    assert bisect(tried, 98) == CLOSED
    assert tried.best == 0 and tried.steps == [49, 24, 12, 6, 3, 1]


@pytest.mark.parametrize(
    ("patience", "steps"), [(1, [49, 74]), (2, [49, 74, 61]), (9, [49, 74, 61, 55, 52, 50])]
)
def test_patience_ends_it_once_something_held(patience: int, steps: list[int]) -> None:
    tried = Tried(lambda step: step <= 49)
    assert bisect(tried, 98, patience=patience) == (CLOSED if patience == 9 else PATIENCE)
    assert tried.steps == steps


def test_patience_does_not_end_a_search_that_has_found_nothing() -> None:
    tried = Tried(lambda step: step <= 2)
    assert bisect(tried, 98, patience=1) == CLOSED
    assert tried.best == 2


def test_time_ends_it_after_the_first_step_at_least() -> None:
    tried = Tried(lambda step: True)
    assert bisect(tried, 98, expired=lambda: len(tried.steps) >= 3) == TIME
    assert len(tried.steps) == 3
    tried = Tried(lambda step: True)
    assert bisect(tried, 98, expired=lambda: True) == TIME
    assert tried.steps == [49]
