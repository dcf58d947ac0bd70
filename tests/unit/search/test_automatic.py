"""The search over models, on measures whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import pipeline, runtime
from onnxprune.errors import FloorError, ModelError, VerificationError
from onnxprune.io import load
from onnxprune.model import Model
from onnxprune.pipeline import prune
from onnxprune.report.report import Report
from onnxprune.search import automatic
from onnxprune.search.largest import PATIENCE, TIME

TEXT = """g (float[N, 16] x) => (float[N, 12] y) {
    a = MatMul(x, w1)  h = Add(a, b1)  r = Relu(h)  y = MatMul(r, w2) }"""
RNG = np.random.default_rng(3)
X = RNG.normal(size=(60, 16)).astype(np.float32)
QUICK: dict[str, Any] = {
    "min_size": 64,
    "samples": 20,
    "threads": 1,
    "solver": "sweep",
    "allocation": "uniform",
    "target_runtime": "stock",
    "cache": False,  # what is known of one test is not to be known to the next
    "data": X,
}
# Of a single MatMul, the unit vectors show the weight itself: the metric knows how sparse it is.
LINE = "g (float[N, 16] x) => (float[N, 40] y) { y = MatMul(x, w) }"
EVAL = """
import math
import numpy as np

def zeros(session):
    return float((session.run(None, {"x": np.eye(16, dtype=np.float32)})[0] == 0).mean())

def noisy(session):
    return 100 - 40 * zeros(session) + 3 * math.sin(97 * zeros(session))

def falling(session):
    return 100 - 10 * zeros(session)

def never(session):
    return 5.0 if zeros(session) else 100.0

def always(session):
    return 100.0

def cliff(session):
    return 100.0 if zeros(session) < 0.595 else math.nan

def loss(session):
    return -1 - zeros(session)
"""


@pytest.fixture
def path(build_model: Callable[..., onnx.ModelProto], tmp_path: Path) -> Path:
    weights = {"w1": noise(16, 24), "b1": noise(24), "w2": noise(24, 12)}
    onnx.save(build_model(TEXT, weights), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


@pytest.fixture
def run(build_model: Callable[..., onnx.ModelProto], tmp_path: Path) -> Callable[..., Report]:
    """Search with a metric of EVAL, on a model of one layer."""
    onnx.save(build_model(LINE, {"w": noise(16, 40)}), tmp_path / "line.onnx")
    (tmp_path / "ev.py").write_text(EVAL)

    def search(rule: str, **options: Any) -> Report:
        return prune(tmp_path / "line.onnx", **{**QUICK, "eval": f"{tmp_path / 'ev.py'}:{rule}", **options})

    return search


def curve(report: Report) -> list[dict[str, Any]]:
    assert report.search is not None
    points: list[dict[str, Any]] = report.search["points"]
    return points


def test_a_falling_metric_is_followed_to_its_floor(run: Callable[..., Report], tmp_path: Path) -> None:
    report = run(
        "falling", max_drop="4.505"
    )  # 100 - 10 s >= 95.495, but for what is rounded to whole weights
    assert report.search is not None
    assert report.search["chosen"] == 0.45
    assert report.sparsity == pytest.approx(0.45, abs=0.001)
    assert (report.search["dense_metric"], report.search["metric_bound"]) == (100.0, 95.495)
    assert report.metric_after is not None and report.metric_after >= 95.495
    assert [p["sparsity"] for p in curve(report)] == sorted(p["sparsity"] for p in curve(report))
    kept = {p["sparsity"] for p in curve(report) if p["holds"]}
    assert max(kept) == 0.45 and 0.46 in {p["sparsity"] for p in curve(report) if not p["holds"]}
    assert load(tmp_path / "line.pruned.onnx").index.producer
    assert Report.load(tmp_path / "line.pruned.json").search == report.search


def test_relative_and_in_points(run: Callable[..., Report]) -> None:
    for drop in ("2%", "2pp"):
        found = run("falling", max_drop=drop, force=True).search
        assert found is not None and found["chosen"] == pytest.approx(0.2)


def test_a_noisy_metric_ends_on_a_model_that_holds(run: Callable[..., Report]) -> None:
    report = run("noisy", max_drop="12")
    chosen = next(p for p in curve(report) if p["sparsity"] == report.search["chosen"])  # type: ignore[index]
    assert chosen["holds"] and chosen["metric"] >= 88.0
    assert all(p["zeros"] <= chosen["zeros"] for p in curve(report) if p["holds"])


def test_nan_is_a_model_that_does_not_hold(run: Callable[..., Report]) -> None:
    report = run("cliff", max_drop="1%")
    assert report.search is not None and report.search["chosen"] == 0.59
    broken = [p for p in curve(report) if p["sparsity"] >= 0.6]
    assert broken and all(p["metric"] is None and "metric nan" in p["why"] for p in broken)


def test_always_holds(run: Callable[..., Report]) -> None:
    report = run("always", max_drop="0")
    assert report.search is not None and report.search["chosen"] == 0.98


def test_a_loss_turned_round(run: Callable[..., Report]) -> None:
    report = run("loss", max_drop="30%")  # from -1 down to -1.3
    assert report.search is not None and report.search["chosen"] == pytest.approx(0.3, abs=0.011)


def test_never_holds_leaves_nothing(run: Callable[..., Report], tmp_path: Path) -> None:
    with pytest.raises(FloorError, match="no pruned model holds the floor of metric 99") as caught:
        run("never", max_drop="1%")
    assert caught.value.exit_code == 1
    assert len(caught.value.search["points"]) == 6
    assert all(not p["holds"] and p["why"] for p in caught.value.search["points"])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["ev.py", "line.onnx"]


def test_patience(run: Callable[..., Report]) -> None:
    report = run("cliff", max_drop="5", patience=2)
    assert report.search is not None and report.search["stopped"] == PATIENCE
    assert [p["sparsity"] for p in curve(report)] == [0.49, 0.61, 0.74]


def test_out_of_time_is_said(run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic.Automatic, "_expired", lambda self: len(self.search.points) >= 2)
    report = run("always", max_drop="1%", time_limit=5.0)
    assert any("out of time after 2 models" in warning for warning in report.warnings)


def test_time_limit(run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 20))
    monkeypatch.setattr(automatic, "now", lambda: float(next(clock)))
    report = run("always", max_drop="1%", time_limit=2.0)
    assert report.search is not None and report.search["stopped"] == TIME
    assert len(curve(report)) == 2 and report.search["chosen"] == 0.74


def test_the_pattern_limits_the_search(run: Callable[..., Report]) -> None:
    report = run("always", max_drop="1%", pattern="2:4")
    assert report.search is not None and report.search["chosen"] == 0.5
    assert report.sparsity == pytest.approx(0.5)


def test_same_seed_same_bytes(run: Callable[..., Report], tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        report = run("noisy", max_drop="12", force=True)
        texts.append((tmp_path / "line.pruned.onnx").read_bytes())
    assert texts[0] == texts[1]
    assert report.search is not None


def test_a_model_that_cannot_be_pruned_so_far_is_a_miss(
    run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline._check_finite

    def check(pruned: Model, layers: Any) -> None:
        real(pruned, layers)
        if not np.count_nonzero(pruned.array("w")) > 0.3 * 640 - 1:
            raise ModelError("too far")

    monkeypatch.setattr(pipeline, "_check_finite", check)
    report = run("always", max_drop="1%")
    assert report.search is not None and report.search["chosen"] == 0.7
    assert {p["why"] for p in curve(report) if p["sparsity"] > 0.7} == {"too far"}


class TestAgreement:
    """Without a metric: selection samples choose, final ones may turn down."""

    def search(self, path: Path, **options: Any) -> Report:
        return prune(path, **{**QUICK, **options})

    def test_holds_on_both(self, path: Path) -> None:
        report = self.search(path, min_agreement=0.9)
        assert report.search is not None and not report.search["own_data"]
        assert (report.search["selection_samples"], report.search["final_samples"]) == (20, 20)
        chosen = next(p for p in curve(report) if p["sparsity"] == report.search["chosen"])
        assert chosen["agreement"] >= 0.9 and chosen["final_agreement"] >= 0.9
        assert report.agreements[0]["top1"] == pytest.approx(chosen["final_agreement"])

    def test_final_samples_turn_down_and_it_is_said(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []

        def agreement(dense: Any, other: Any, batches: Any, model: Any = None) -> Any:
            asked.append(batches)
            return batches

        def share(found: Any) -> float:
            # Selection is content up to 61 %, the final samples up to 49 %.
            order = list({id(item): item for item in asked})
            return (0.99 if len(asked) <= 8 else 0.9) if id(found) == order[0] else values[len(asked)]

        values: dict[int, float] = dict.fromkeys(range(100), 0.5) | {2: 0.99}
        monkeypatch.setattr("onnxprune.search.judge.agreement", agreement)
        monkeypatch.setattr("onnxprune.search.judge.share_that_agrees", share)
        monkeypatch.setattr("onnxprune.search.trials.share_that_agrees", lambda found: 1.0)
        report = self.search(path, min_agreement=0.95)
        assert report.search is not None and report.search["chosen"] == 0.49
        assert "held on the selection samples but not on the final ones" in report.warnings[-1]
        assert report.sparsity == pytest.approx(0.49, abs=0.01)

    def test_the_written_file_is_judged_too(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("onnxprune.search.trials.share_that_agrees", lambda found: 0.1)
        with pytest.raises(VerificationError, match=r"agreement 0\.1"):
            self.search(path, min_agreement=0.9)
        assert sorted(item.name for item in path.parent.iterdir()) == ["net.onnx"]

    def test_labels_measure_on_data_that_chose_nothing(self, path: Path) -> None:
        (labels,) = runtime.session(path, threads=1).run(None, {"x": X})
        feeds = {"x": X, "y": labels.argmax(1)}
        report = self.search(path, data=feeds, metric="accuracy", labels="y", max_drop="10pp")
        assert report.metric == "accuracy" and report.metric_before == 1.0
        assert report.metric_after is not None and report.metric_after >= 0.9
        chosen = next(p for p in curve(report) if p["holds"] and p["sparsity"] == report.search["chosen"])  # type: ignore[index]
        assert chosen["final_metric"] == report.metric_after

    def test_fp16_values_are_judged_as_they_are_written(self, path: Path) -> None:
        report = self.search(path, min_agreement=0.9, values="fp16")
        assert report.search is not None
        chosen = next(p for p in curve(report) if p["sparsity"] == report.search["chosen"])
        assert report.agreements[0]["top1"] == pytest.approx(chosen["final_agreement"])

    def test_bytes_of_the_curve_are_those_of_the_file(self, path: Path) -> None:
        for form in ("packed", "dense", "sparse-initializer"):
            report = self.search(path, min_agreement=0.9, format=form, force=True)
            assert report.search is not None and report.file_bytes_after is not None
            chosen = next(p for p in curve(report) if p["sparsity"] == report.search["chosen"])
            assert chosen["bytes"] == pytest.approx(report.file_bytes_after, abs=6000)  # functions, names
