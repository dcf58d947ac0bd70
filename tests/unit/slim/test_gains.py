"""Speed is the dense time over the smaller one."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.calibration.data import CalibrationData
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.slim import gains
from onnxprune.slim.gains import measured_speed
from onnxprune.slim.ready import Ready

Given = tuple[Model, CalibrationData, Recipe]


def test_speed_is_the_dense_time_over_the_smaller_one(
    given: Given, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sessions = given[0], []
    other = model.copy()

    def session(of: Model, threads: int) -> tuple[Model, int]:
        sessions.append((of, threads))
        return sessions[-1]

    def times(found: list[tuple[Model, int]], *_: Any, **__: Any) -> list[float]:
        return [(3.0 if of is model else 2.0) / threads for of, threads in found]

    monkeypatch.setattr(gains, "session_of", session)
    monkeypatch.setattr(gains, "best_times", times)
    assert measured_speed(model, other, ready.feeds, 2) == {1: 1.5, 2: 1.5}
    assert sessions == [(model, 1), (other, 1), (model, 2), (other, 2)]
