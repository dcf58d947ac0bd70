"""Ratios of rounds, and what makes figures doubtful."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.timing import Ratio, Timing, doubts, paired_ratio


def test_by_hand() -> None:
    ratio = paired_ratio([2, 4, 9], [1, 2, 3])
    assert (ratio.median, ratio.low, ratio.high) == (2, 2, 3)
    assert ratio.quartiles == (2, 2.5)


def test_what_slows_a_whole_round_cancels() -> None:
    rng = np.random.default_rng(0)
    load = rng.uniform(1, 10, 40)
    ratio = paired_ratio(0.5 * load, load)
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


def test_against_itself() -> None:
    assert paired_ratio([3.0, 1.0], [3.0, 1.0]).high == 1


def test_interval_covers_the_true_median_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        sample = rng.lognormal(mean=0.1, sigma=0.3, size=30)
        ratio = paired_ratio(sample, np.ones(30))
        hits += ratio.low <= math.exp(0.1) <= ratio.high
    assert 370 <= hits <= 398


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60))
def test_order(times: list[float]) -> None:
    ratio = paired_ratio(times, [1.0] * len(times))
    assert min(times) <= ratio.low <= ratio.median <= ratio.high <= max(times)
    assert ratio.quartiles[0] <= ratio.median <= ratio.quartiles[1]


def test_clock_that_stood_still() -> None:
    assert paired_ratio([0.0, 0.0, 2.0], [0.0, 1.0, 1.0]).median == 1.5
    assert math.isnan(paired_ratio([0.0], [1.0]).median)


def timing(ratio: tuple[float, float, float] = (1, 1, 1), **changes: object) -> Timing:
    pair = Ratio(*ratio, (1.0, 1.0))
    values = {"name": "a", "threads": 1, "rounds": 9, "runs": 9, "median_ms": 10.0, "p95_ms": 10.0}
    values |= {"min_ms": 10.0, "cpu_ms": 10.0, "spread": 0.0, "ratio": pair, "cpu_ratio": pair}
    return Timing(**{**values, **changes})  # type: ignore[arg-type]


def test_nothing_is_doubtful() -> None:
    assert doubts([timing(), timing(threads=2, cpu_ms=3.0)], True) == []


def test_what_is_doubtful() -> None:
    (spread,) = doubts([timing(), timing(spread=0.3)], True)
    assert "30% apart" in spread
    assert doubts([timing(spread=0.3)], False) == []  # of several shapes
    (waited,) = doubts([timing(), timing(cpu_ms=4.0)], True)
    assert "for 40% of the time" in waited
    (vague,) = doubts([timing(), timing((1.0, 0.8, 1.25), name="b", threads=2, cpu_ms=30.0)], True)
    assert "(b with 2 threads takes 0.80 to 1.25 of the first model's time)" in vague
