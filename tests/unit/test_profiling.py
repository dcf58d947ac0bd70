"""Where the time goes, by operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.profiling import fastest_seconds, op_seconds, spent

TEXT = "g (float[N, 256] x) => (float[N, 256] y) { a = MatMul(x, w)  b = Exp(a)  y = Softmax(b) }"


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    weight = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32) / 100
    return Model(build_model(TEXT, {"w": weight}))


def test_every_operator_has_its_time(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = op_seconds(model, [{"x": np.ones((64, 256), np.float32), "unknown": np.ones(1)}], threads=1)
    assert set(found) == {"MatMul", "Exp", "Softmax"}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(0 < seconds < 1 for seconds in found.values())
    assert not list(tmp_path.iterdir())  # the profiler's file is gone


def test_the_first_round_does_not_count() -> None:
    def event(op: str, us: int, suffix: str = "_kernel_time", cat: str = "Node") -> dict[str, object]:
        return {"cat": cat, "name": f"node{suffix}", "dur": us, "args": {"op_name": op}}

    one = [event("MatMul", 10), event("Exp", 4), event("MatMul", 2), event("Exp", 99, "_fence_before")]
    first = [event("MatMul", 1000), event("Exp", 1000), event("MatMul", 1000)]
    events = [event("", 5000, cat="Session"), *first, *one, *one]
    assert spent(events, 3) == {"MatMul": pytest.approx(12e-6), "Exp": pytest.approx(4e-6)}


def test_the_fastest_run_of_some_operators(model: Model) -> None:
    feed = {"x": np.ones((64, 256), np.float32)}
    product = fastest_seconds(model, feed, ("MatMul",), threads=1)
    assert 0 < product < fastest_seconds(model, feed, ("MatMul", "Exp", "Softmax"), threads=1) * 1.5
    assert fastest_seconds(model, feed, ("Conv",), threads=1) == 0
