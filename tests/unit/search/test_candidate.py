"""What a search tries: its size by hand, and units that go instead of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.errors import FloorError
from onnxprune.io import load
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe
from onnxprune.report.report import Report
from onnxprune.search.candidate import stored_bytes
from onnxprune.sequential import Solved
from onnxprune.slim import stage

TEXT = """g (float[N, 16] x) => (float[N, 12] y) {
    a = MatMul(x, w1)  h = Add(a, b1)  r = Relu(h)  y = MatMul(r, w2) }"""
X = np.random.default_rng(3).normal(size=(60, 16)).astype(np.float32)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def test_stored_bytes_by_hand(build_model: Callable[..., onnx.ModelProto]) -> None:
    model = Model(build_model(TEXT, {"w1": noise(16, 24), "b1": noise(24), "w2": noise(24, 12)}))
    layers, _ = find_layers(model, min_size=64)
    solved = [Solved("w1", 84, None, 0.0), Solved("w2", 0, None, 0.0)]
    assert stored_bytes(model, layers, solved, Recipe(format="dense")) == 4 * (384 + 288)
    coo = Recipe(format="sparse-initializer")
    assert stored_bytes(model, layers, solved, coo) == 300 * 12 + 4 * 288


class TestUnits:
    """Half of the hidden units do nothing for the output: a search removes them, and not one more."""

    @pytest.fixture
    def search(self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path) -> Callable[..., Report]:
        second = noise(24, 12)
        second[::2] *= 1e-6
        onnx.save(
            build_model(TEXT, {"w1": noise(16, 24), "b1": noise(24), "w2": second}), tmp_path / "m.onnx"
        )
        (tmp_path / "ev.py").write_text(
            "import numpy as np\n"
            "X = np.random.default_rng(5).normal(size=(50, 16)).astype(np.float32)\n"
            "def close(session, seen=[]):\n"
            "    y = session.run(None, {'x': X})[0]\n"
            "    seen.append(y)\n"
            "    return 100 - 100 * float(np.linalg.norm(y - seen[0]) / np.linalg.norm(seen[0]))\n"
        )

        def run(**options: Any) -> Report:
            settings = {"data": X, "samples": 20, "threads": 1, "round_to": 1, "cache": False, **options}
            return prune(
                tmp_path / "m.onnx", pattern="structured", eval=f"{tmp_path}/ev.py:close", **settings
            )

        return run

    def test_all_that_is_idle_goes(self, search: Callable[..., Report], tmp_path: Path) -> None:
        report = search(max_drop="1%")
        assert report.search is not None and report.structured is not None
        assert report.metric_after is not None and report.metric_after >= 99.0
        smaller = load(tmp_path / "m.pruned.onnx")
        assert smaller.array("w1").shape == (16, 12) and smaller.array("w2").shape == (12, 12)
        assert [(group["before"], group["after"]) for group in report.structured["groups"]] == [(24, 12)]
        chosen = next(p for p in report.search["points"] if p["sparsity"] == report.search["chosen"])
        assert chosen["zeros"] == 12 * (16 + 1 + 12)
        assert chosen["bytes"] == pytest.approx(report.file_bytes_after, abs=200)
        assert any(not p["holds"] for p in report.search["points"])

    def test_multiplications_are_counted_where_asked_for(self, search: Callable[..., Report]) -> None:
        report = search(max_drop="1%", budget="flops")
        assert report.structured is not None
        before, after = report.structured["multiplications"]
        assert after == before / 2

    def test_nothing_holds(self, search: Callable[..., Report], tmp_path: Path) -> None:
        with pytest.raises(FloorError, match="no pruned model holds"):
            search(
                max_drop="0"
            )  # the least is a twelfth of a unit that is idle, and shows in the last digits
        assert not (tmp_path / "m.pruned.onnx").exists()

    def test_training_inside(self, search: Callable[..., Report]) -> None:
        pytest.importorskip("torch")
        report = search(max_drop="20%", finetune=True, steps=16, lr=0.001)
        assert report.search is not None and report.finetuning is not None
        assert report.metric_after is not None and report.metric_after >= 80.0


def test_what_cannot_be_removed_is_tried_once(
    build_model: Callable[..., onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that passes the first trial, and fails with the units that are chosen."""
    text = """g (float[N, 16] x) => (float[N, 12] y) {
        a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Relu(c) y = MatMul(d, w3) }"""
    weights = {"w1": noise(16, 24), "w2": noise(24, 20), "w3": noise(20, 12)}
    right, asked = stage.remove_checked, []

    def wrong(model, structure, removed, feeds, threads=None):  # type: ignore[no-untyped-def]
        asked.append({structure.group(name).units for name in removed})
        fails = {name: "another shape" for name in removed if structure.group(name).units == 20}
        good = {name: mask for name, mask in removed.items() if name not in fails}
        smaller, done, failed = right(model, structure, good, feeds, threads)
        return smaller, done, failed | fails

    monkeypatch.setattr(stage, "remove_checked", wrong)
    report = prune(
        build_model(text, weights), data=X, samples=20, threads=1, round_to=1, dry_run=True,
        pattern="structured", min_agreement=0.5,
    )  # fmt: skip
    assert report.search is not None and len(report.search["points"]) > 2
    assert sum(20 in units for units in asked) == 1 < len(asked)
    assert report.structured is not None
    assert any("fails: another shape" in item["reason"] for item in report.structured["pinned"])
    assert [group["before"] for group in report.structured["groups"]] == [24]
