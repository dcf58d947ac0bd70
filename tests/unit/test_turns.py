"""The timing protocol: who runs when, and what is counted. No times are asserted."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import turns
from onnxprune.errors import DataError
from onnxprune.progress import NullProgress
from onnxprune.turns import Turns, load_sessions, measure


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the clocks: a run of session ``name`` takes ``cost[name]`` seconds, creating one takes 1."""
    now, order = [0.0], []
    cost = {"a": 0.010, "b": 0.020}

    class Session:
        def __init__(self, name: str) -> None:
            self.name = name

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="x")]

        def run(self, outputs: Any, feeds: Any) -> list[Any]:
            assert list(feeds) == ["x"]
            order.append((self.name, feeds["x"].shape[0]))
            now[0] += cost[self.name]
            return [np.zeros(1)]

    def session(path: Any, *, threads: int, config: dict[str, str], name: str) -> Session:
        now[0] += 1.0
        return Session(name)

    monkeypatch.setattr(turns, "session", session)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(turns.time, "process_time", lambda: 2 * now[0])
    return SimpleNamespace(now=now, order=order, cost=cost, session=Session)


def feed(rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.ones((rows, 16), np.float32), "other": np.ones(1)}


def taken(clock: Any, names: str, feeds: Sequence[Any], rounds: int, **more: Any) -> list[Turns]:
    options = {"warmup": 1, "min_time": 0.0, **more}
    sessions = [clock.session(name) for name in names]
    return measure(sessions, names, feeds, rounds, progress=NullProgress(), **options)


def test_turns_go_there_and_back(clock: Any) -> None:
    taken(clock, "ab", [feed()], 4)
    assert "".join(name for name, _ in clock.order[-8:]) == "abbaabba"


def test_short_runs_fill_a_turn_and_the_first_is_not_counted(clock: Any) -> None:
    clock.cost["a"] = 0.001
    first, second = taken(clock, "ab", [feed()], 3)
    assert (len(first.runs), len(first.wall), len(second.runs)) == (3 * 5, 3, 3)
    tail = [name for name, _ in clock.order][-21:]
    assert tail == ["a"] * 6 + ["b"] * 2 + ["a"] * 12 + ["b"]
    assert (first.wall, second.wall) == (pytest.approx([0.001] * 3), pytest.approx([0.02] * 3))
    assert (first.cpu, second.cpu) == (pytest.approx([0.002] * 3), pytest.approx([0.04] * 3))


def test_min_time_adds_rounds(clock: Any) -> None:
    (found,) = taken(clock, "a", [feed()], 3, min_time=1.0)
    assert 100 <= len(found.wall) <= 101


@pytest.mark.parametrize(("warmup", "feeds", "runs"), [(0, 1, 1), (5, 1, 5), (1, 3, 3)])
def test_warm_up(clock: Any, warmup: int, feeds: int, runs: int) -> None:
    """Every batch is seen before anything is counted, besides the check of its shape."""
    taken(clock, "a", [feed(rows) for rows in range(1, feeds + 1)], 1, warmup=warmup)
    assert len(clock.order) == feeds + runs + 1 + 1  # shapes, warm-up, how long a run takes, one turn


def test_slow_loads_are_not_repeated(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, loads = load_sessions(["a.onnx", "b.onnx"], ["a", "b"], 1)
    assert [item.name for item in sessions] == ["a", "b"]
    assert loads == [([1.0] * turns.LOADS, [2.0] * turns.LOADS)] * 2
    monkeypatch.setattr(turns, "LOAD_SECONDS", 1.5)
    _, loads = load_sessions(["a.onnx", "b.onnx"], ["a", "b"], 1)
    assert loads == [([1.0], [2.0])] * 2


@pytest.fixture
def model(build_model: Any, tmp_path: Path) -> Path:
    text = "g (float[N, 16] x) => (float[N, 4] y) { y = MatMul(x, w) }"
    onnx.save(build_model(text, {"w": np.ones((16, 4), np.float32)}), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_idle_threads_do_not_spin(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = turns.session

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["config"])
        return original(*args, **kwargs)

    monkeypatch.setattr(turns, "session", spy)
    load_sessions([model], ["m"], 1)
    assert seen and all(config["session.intra_op.allow_spinning"] == "0" for config in seen)


def test_collector_is_left_as_it_was(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, _ = load_sessions([model], ["m"], 1)
    arguments = ([feed()], 1, 1, 0.0)
    measure(sessions, ["m"], *arguments, NullProgress())
    assert gc.isenabled()
    monkeypatch.setattr(turns, "_take_turn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        measure(sessions, ["m"], *arguments, NullProgress())
    assert gc.isenabled()
    with pytest.raises(DataError, match="cannot run m on"):
        measure(sessions, ["m"], [{"x": np.ones((1, 3), np.float32)}], 1, 1, 0.0, NullProgress())
