"""Searches that go on from what an earlier one measured; a real kill is in tests/e2e/test_kill_search.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from onnxprune import pipeline
from onnxprune.errors import FloorError, ModelError
from onnxprune.pipeline import prune
from onnxprune.report.report import Report
from onnxprune.search import automatic
from onnxprune.search.candidate import Candidate
from onnxprune.search.models import Once
from onnxprune.search.trials import Point

TEXT = """g (float[N, 16] x) => (float[N, 12] y) {
    a = MatMul(x, w1)  h = Add(a, b1)  r = Relu(h)  y = MatMul(r, w2) }"""
X = np.random.default_rng(3).normal(size=(60, 16)).astype(np.float32)
EVAL = """
import pathlib
import numpy as np
X = np.random.default_rng(5).normal(size=(50, 16)).astype(np.float32)
HERE = pathlib.Path(__file__).parent

def close(session):
    y = session.run(None, {"x": X})[0]
    if not (HERE / "dense.npy").exists():
        np.save(HERE / "dense.npy", y)
    dense = np.load(HERE / "dense.npy")
    calls = HERE / "calls"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    return 100 - 100 * float(np.linalg.norm(y - dense) / np.linalg.norm(dense))
"""


class KilledError(Exception):
    """In place of a signal: what comes after it is not done."""


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


@pytest.fixture
def search(
    build_model: Callable[..., onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Report]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = {"w1": noise(16, 24), "b1": noise(24), "w2": noise(24, 12)}
    onnx.save(build_model(TEXT, weights), tmp_path / "m.onnx")
    (tmp_path / "ev.py").write_text(EVAL)

    def run(**options: Any) -> Report:
        settings: dict[str, Any] = {
            **{"data": X, "samples": 20, "threads": 1, "min_size": 64, "solver": "sweep"},
            **{"target_runtime": "stock", "eval": f"{tmp_path}/ev.py:close", "max_drop": "30%"},
        }
        (tmp_path / "calls").write_text("")
        return prune(tmp_path / "m.onnx", force=True, **{**settings, **options})

    return run


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], int]:
    """How often the metric was measured in the last run."""
    return lambda: len((tmp_path / "calls").read_text())


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the search end with an error after so many models."""

    def arm(models: int) -> None:
        real, left = automatic.Automatic._keep, [models]

        def keep(self: Any, *args: Any) -> Any:
            found = real(self, *args)
            left[0] -= 1
            if not left[0]:
                monkeypatch.setattr(automatic.Automatic, "_keep", real)
                raise KilledError
            return found

        monkeypatch.setattr(automatic.Automatic, "_keep", keep)

    return arm


def told(report: Report) -> Any:
    """What a report says of the search, without what an earlier run may change."""
    assert report.search is not None
    points = [{**p, "seconds": 0, "known": False} for p in report.search["points"]]
    return {**report.search, "points": points}, report.finetuning and {**report.finetuning, "seconds": 0}


def known(report: Report) -> int:
    assert report.search is not None
    return sum(point["known"] for point in report.search["points"])


MODES: dict[str, dict[str, Any]] = {
    "weights": {},
    "fp16": {"values": "fp16"},
    "units": {"pattern": "structured", "round_to": 1, "solver": "admm", "min_size": 256},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_search_goes_on(
    search: Callable[..., Report],
    calls: Callable[[], int],
    kill_after: Callable[[int], None],
    tmp_path: Path,
    mode: str,
) -> None:
    whole = search(cache=False, **MODES[mode])
    wanted, asked = (tmp_path / "m.pruned.onnx").read_bytes(), calls()
    (tmp_path / "m.pruned.onnx").unlink()
    kill_after(2)
    with pytest.raises(KilledError):
        search(**MODES[mode])
    assert not (tmp_path / "m.pruned.onnx").exists()
    again = search(**MODES[mode])
    assert (tmp_path / "m.pruned.onnx").read_bytes() == wanted
    assert told(again) == told(whole) and known(again) == 2 and calls() == asked - 2
    finished = search(**MODES[mode])
    assert (tmp_path / "m.pruned.onnx").read_bytes() == wanted
    assert told(finished) == told(whole) and known(finished) == len(finished.search["points"])  # type: ignore[index]
    assert calls() == 2  # the dense model and the written one
    assert not any("measured again" in warning for warning in finished.warnings)


def test_another_floor_uses_what_is_known(search: Callable[..., Report], tmp_path: Path) -> None:
    search()
    report = search(max_drop="18%", min_agreement=0.1)
    written = (tmp_path / "m.pruned.onnx").read_bytes()
    assert 0 < known(report) < len(report.search["points"])  # type: ignore[index]
    assert told(report) == told(search(max_drop="18%", min_agreement=0.1, cache=False))
    assert (tmp_path / "m.pruned.onnx").read_bytes() == written


def test_a_search_in_vain_is_known_too(search: Callable[..., Report], calls: Callable[[], int]) -> None:
    found = []
    for _ in range(2):
        with pytest.raises(FloorError) as caught:
            search(max_drop="0.001%")
        found.append((str(caught.value), calls()))
    assert found[0][0] == found[1][0] and found[0][1] > found[1][1] == 1


def test_no_cache_measures_again(
    search: Callable[..., Report], calls: Callable[[], int], tmp_path: Path
) -> None:
    search()
    first = calls()
    assert known(search(cache=False)) == 0 and calls() == first
    kept = sorted((tmp_path / "cache").rglob("*.json"))
    search(cache=False, seed=4)
    assert sorted((tmp_path / "cache").rglob("*.json")) == kept


def test_a_damaged_file_is_said(search: Callable[..., Report], tmp_path: Path) -> None:
    wanted = told(search())
    (path,) = (tmp_path / "cache" / "onnxprune" / "search").iterdir()
    path.write_text(path.read_text()[:-20])
    report = search()
    assert known(report) == 0 and any(str(path) in warning for warning in report.warnings)
    report.search["notes"].clear()  # type: ignore[index]
    assert told(report) == wanted
    assert known(search()) > 0


def test_several_processes_keep_nothing(
    search: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    search()
    assert not (tmp_path / "cache" / "onnxprune" / "search").exists()


def test_what_cannot_be_pruned_is_known(
    search: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = pipeline._check_finite, []

    def check(pruned: Any, layers: Any) -> None:
        real(pruned, layers)
        tried.append(np.mean(pruned.array("w1") == 0))
        if tried[-1] > 0.5:
            raise ModelError("too far")

    monkeypatch.setattr(pipeline, "_check_finite", check)
    first = search(max_drop="100%")
    count = len(tried)
    again = search(max_drop="100%")
    assert told(first) == told(again) and len(tried) == count + 1
    assert "too far" in {point["why"] for point in again.search["points"]}  # type: ignore[index]


def test_time_of_an_earlier_run_counts(
    search: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def now() -> float:
        clock[0] += 10.0
        return clock[0]

    monkeypatch.setattr(automatic, "now", now)
    first = search(time_limit=1.0)
    clock[0] = 0.0
    assert first.search is not None and first.search["stopped"] == "out of time"
    again = search(time_limit=1.0)
    assert told(again) == told(first) and known(again) == len(again.search["points"])  # type: ignore[index]
    more = search(time_limit=100.0)
    assert len(more.search["points"]) > len(first.search["points"]) == known(more)  # type: ignore[index]


class TestTraining:
    OPTIONS: ClassVar[dict[str, Any]] = {"finetune": True, "steps": 16, "lr": 0.003, "max_drop": "15%"}

    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        pytest.importorskip("torch")

    @pytest.fixture
    def trainings(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The steps of each training."""
        from onnxprune.search import models

        real, done = models.tune, list[int]()

        def tune(*args: Any) -> Any:
            done.append(args[5].steps)
            return real(*args)

        monkeypatch.setattr(models, "tune", tune)
        return done

    def test_goes_on_and_repeats(
        self,
        search: Callable[..., Report],
        kill_after: Callable[[int], None],
        trainings: list[int],
        tmp_path: Path,
    ) -> None:
        whole = search(cache=False, **self.OPTIONS)
        wanted, needed = (tmp_path / "m.pruned.onnx").read_bytes(), list(trainings)
        assert 16 in needed and 2 in needed
        kill_after(len(told(whole)[0]["points"]) - 1)  # all but the full training
        with pytest.raises(KilledError):
            search(**self.OPTIONS)
        trainings.clear()
        again = search(**self.OPTIONS)
        assert trainings == [16]
        assert (tmp_path / "m.pruned.onnx").read_bytes() == wanted and told(again) == told(whole)
        trainings.clear()
        finished = search(**self.OPTIONS)
        assert trainings == [] and (tmp_path / "m.pruned.onnx").read_bytes() == wanted
        assert told(finished) == told(whole)

    def test_weights_that_are_gone_are_trained_again(
        self, search: Callable[..., Report], trainings: list[int], tmp_path: Path
    ) -> None:
        whole = search(**self.OPTIONS)
        wanted = (tmp_path / "m.pruned.onnx").read_bytes()
        held = list((tmp_path / "cache" / "onnxprune" / "arrays").iterdir())
        assert 1 <= len(held) <= 2  # of what was chosen, after the short and after the full training
        for path in held:
            path.unlink()
        trainings.clear()
        again = search(**self.OPTIONS)
        assert len(trainings) == len(held)
        assert told(again) == told(whole) and (tmp_path / "m.pruned.onnx").read_bytes() == wanted


def test_a_candidate_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make() -> Candidate:
        made.append(Point(0.5))
        return made[-1]  # type: ignore[no-any-return]

    once = Once(make)
    assert not made
    assert once() is once() is made[0] and len(made) == 1
