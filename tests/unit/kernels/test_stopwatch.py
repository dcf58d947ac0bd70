from __future__ import annotations

import gc
import os
import time
from typing import Any

import pytest

from onnxprune.kernels import stopwatch
from onnxprune.kernels.stopwatch import best_times, busy, clock_of


class Worker:
    """Stands for a session; works for some time, and now and then much longer."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.runs = seconds, 0

    def run(self, _names: Any, feed: Any) -> None:
        self.runs += 1
        pause = self.seconds * feed["times"] * (20 if self.runs % 5 == 0 else 1)
        until = time.process_time() + pause
        while time.process_time() < until:
            pass


def test_disturbances_do_not_count() -> None:
    workers = [Worker(2e-4), Worker(6e-4)]
    fast, slow = best_times(workers, [{"times": 1}], 1)
    assert 2 < slow / fast < 4
    assert gc.isenabled()


def test_all_feeds_are_one_unit() -> None:
    (one,) = best_times([Worker(2e-4)], [{"times": 1}], 1)
    (three,) = best_times([Worker(2e-4)], [{"times": 1}, {"times": 2}], 1)
    assert 2 < three / one < 4


def test_a_slow_model_has_few_turns() -> None:
    worker = Worker(1e-3)
    best_times([worker], [{"times": 1}], 1, seconds=0)
    assert worker.runs == 2 + 2 * 3
    worker = Worker(1e-3)
    best_times([worker], [{"times": 1}], 1)
    assert worker.runs == 2 + 2 * stopwatch.ROUNDS


@pytest.mark.parametrize(("load", "threads", "wall"), [(0.1, 1, False), (0.1, 2, True), (99.0, 2, False)])
def test_the_clock(monkeypatch: pytest.MonkeyPatch, load: float, threads: int, wall: bool) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    assert clock_of(threads) is (time.perf_counter if wall else time.process_time)


def test_a_system_without_load_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    assert not busy()
