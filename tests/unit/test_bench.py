"""What is measured, and what is said about it; who runs when: test_turns.py. No times are asserted."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from onnxprune import turns
from onnxprune.bench import bench, labels
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.recipe import Recipe

MODULE = importlib.import_module("onnxprune.bench")
TEXT = "g (float[N, 16] x) => (float[N, 4] y) { y = MatMul(x, w) }"


@pytest.fixture
def save(build_model, tmp_path: Path):
    def write(name: str, text: str = TEXT, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        weights = {"w": np.random.default_rng(seed).normal(size=(16, 4)).astype(np.float32)}
        onnx.save(build_model(text, weights), path)
        return path

    return write


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Replace sessions and clocks: a run of model ``name`` takes ``cost[name]`` seconds."""
    now, order = [0.0], []
    cost = {"a.onnx": 0.010, "b.onnx": 0.020}

    class Session:
        def __init__(self, name: str, threads: int) -> None:
            self.name, self.threads = name, threads

        def get_inputs(self):
            return [SimpleNamespace(name="x")]

        def run(self, outputs, feeds):
            order.append((self.name, self.threads, feeds["x"].shape[0]))
            now[0] += cost[self.name]
            return [np.zeros(1)]

    def session(path, *, threads, config: dict, name: str):
        now[0] += 1.0
        return Session(name, threads)

    monkeypatch.setattr(turns, "session", session)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(turns.time, "process_time", lambda: 2 * now[0])
    monkeypatch.setattr(MODULE.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(MODULE, "cpu_count", lambda: 4)
    return SimpleNamespace(now=now, order=order, cost=cost)


def feed(rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.ones((rows, 16), np.float32)}


def test_structure_with_onnx_runtime(save) -> None:
    result = bench([save("a.onnx"), save("b.onnx", seed=1)], threads=(1, 2), rounds=4)
    assert [(t.name, t.threads) for t in result.timings] == [
        ("a.onnx", 1), ("b.onnx", 1), ("a.onnx", 2), ("b.onnx", 2),
    ]  # fmt: skip
    assert [m.file_bytes for m in result.models] == [Path(m.path).stat().st_size for m in result.models]
    for item in result.timings:
        assert item.rounds == 4 and item.runs >= 4
        assert 0 < item.min_ms <= item.median_ms <= item.p95_ms < math.inf
        assert item.cpu_ms > 0
        assert item.ratio.low <= item.ratio.median <= item.ratio.high
    for item in result.timings[::2]:
        assert (item.ratio.median, item.ratio.low, item.ratio.high, item.cpu_ratio.median) == (1, 1, 1, 1)
    assert result.inputs == {"x": "float32[1,16]"} and "synthetic" in result.data
    assert all(m.load_ms > 0 and m.load_cpu_ms > 0 for m in result.models)


def test_figures_with_known_times(clock, save) -> None:
    result = bench([save("a.onnx"), save("b.onnx")], [feed()], threads=(1,), rounds=6)
    first, second = result.timings
    assert (first.median_ms, second.median_ms) == pytest.approx((10, 20))
    assert (first.runs, first.rounds) == (6, 6)
    assert (second.p95_ms, second.min_ms, second.cpu_ms) == pytest.approx((20, 20, 40))
    assert (second.ratio.median, second.ratio.low, second.ratio.high) == pytest.approx((2, 2, 2))
    assert second.cpu_ratio.median == pytest.approx(2) and second.spread == pytest.approx(0, abs=1e-9)
    assert [m.load_ms for m in result.models] == pytest.approx([1000, 1000])
    assert result.models[0].load_cpu_ms == pytest.approx(2000)
    assert result.notes == ()


def test_batches_take_turns_and_fit_every_model(clock, save) -> None:
    result = bench([save("a.onnx"), save("b.onnx")], [feed(1), feed(2)], threads=(1,), rounds=4)
    assert [rows for *_, rows in clock.order[-8:]] == [1, 1, 2, 2, 1, 1, 2, 2]
    assert any("2 different shapes" in note for note in result.notes)


def test_many_batches_are_thinned_out_evenly(clock, save) -> None:
    result = bench([save("a.onnx")], [feed(n) for n in range(1, 65)], threads=(1,), rounds=16)
    assert [rows for *_, rows in clock.order[-16:]] == list(range(1, 65, 4))
    assert result.inputs == {"x": "float32[1,16]"}


def test_each_number_of_threads_has_its_sessions(clock, save) -> None:
    result = bench([save("a.onnx")], [feed()], threads=(2, 1, 2), rounds=1)
    assert [t.threads for t in result.timings] == [2, 1], "a number given twice is measured once"
    assert {threads for _, threads, _ in clock.order} == {1, 2}


def test_doubts_are_said(clock, save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE.os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    rng = np.random.default_rng(0)
    monkeypatch.setitem(clock.cost, "a.onnx", 0.0)
    jitter = turns.time.perf_counter

    def noisy() -> float:
        clock.now[0] += float(rng.uniform(0.01, 0.05))
        return jitter()

    monkeypatch.setattr(turns.time, "perf_counter", noisy)
    result = bench([save("a.onnx"), save("b.onnx")], [feed(8)], threads=(9,), rounds=10)
    for words in (
        "9 threads on 4 processors",
        "load average was 3.0",
        "batch of 8",
        "quartiles",
        "ratio is uncertain",
    ):
        assert any(words in note for note in result.notes), words


def test_a_process_that_had_to_wait_says_so(clock, save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns.time, "process_time", lambda: 0.3 * clock.now[0])
    result = bench([save("a.onnx")], [feed()], threads=(1,), rounds=3)
    assert any("for 30% of the time" in note for note in result.notes)
    assert bench([save("a.onnx")], [feed()], threads=(2,), rounds=3).notes == ()


def test_fixed_batch_and_recipe(save) -> None:
    path = save("fixed.onnx", TEXT.replace("N,", "4,"))
    assert bench([path], threads=(1,), rounds=1).inputs == {"x": "float32[4,16]"}
    result = bench([save("a.onnx")], threads=(1,), rounds=1, recipe=Recipe(batch_size=8))
    assert result.inputs == {"x": "float32[8,16]"}
    assert any("batch of 8" in note for note in result.notes)


def test_channels_are_no_batch(save) -> None:
    path = save("image.onnx", "g (float[3, 4, 16] x) => (float[3, 4, 4] y) { y = MatMul(x, w) }")
    result = bench([path], threads=(1,), rounds=1)
    assert result.inputs == {"x": "float32[3,4,16]"}
    assert not any("batch of" in note for note in result.notes)


def test_data_from_a_file(save, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((40, 16), np.float32))
    result = bench([save("a.onnx")], threads=(1,), rounds=2, recipe=Recipe(data=str(tmp_path / "data.npz")))
    assert result.inputs == {"x": "float32[1,16]"} and "data.npz" in result.data


def test_inputs_that_do_not_fit(save) -> None:
    other = save("b.onnx", "g (float[N, 16] z) => (float[N, 4] y) { y = MatMul(z, w) }")
    with pytest.raises(DataError, match=r"b\.onnx wants input 'z'"):
        bench([save("a.onnx"), other], [feed()], threads=(1,), rounds=1)
    with pytest.raises(DataError, match="no input"):
        bench([other], [], threads=(1,), rounds=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": (0,)}, "--threads is 0"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"warmup": -1}, "--warmup is -1"),
        ({"min_time": -1.0}, "--min-time is -1"),
        ({"min_time": math.inf}, "--min-time is inf"),
        ({"min_time": math.nan}, "--min-time is nan"),
    ],
)
def test_numbers_that_make_no_sense(save, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        bench([save("a.onnx")], **options)


def test_no_models_and_no_model() -> None:
    with pytest.raises(UsageError):
        bench([])
    with pytest.raises(UsageError):
        bench("model.onnx")  # a string is a sequence of letters
    with pytest.raises(UsageError, match="there is no file"):
        bench(["missing.onnx"])


def test_broken_model(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x00\x01nonsense")
    with pytest.raises(ModelError, match=r"a\.onnx"):
        bench([tmp_path / "a.onnx"])


def test_labels() -> None:
    assert labels(["a/m.onnx", "b/m.onnx", "c/n.onnx"]) == ["a/m.onnx", "b/m.onnx", "n.onnx"]
    assert labels(["a/m.onnx", "a/m.onnx"]) == ["m.onnx", "m.onnx (2)"]


def test_json(save) -> None:
    document = json.loads(
        json.dumps(bench([save("a.onnx")], threads=(1,), rounds=1).to_dict(), allow_nan=False)
    )
    assert document["schema_version"] == 1
    assert set(document) >= {"models", "timings", "inputs", "data", "notes", "environment"}
    assert document["timings"][0]["ratio"] == {"median": 1, "low": 1, "high": 1, "quartiles": [1, 1]}
