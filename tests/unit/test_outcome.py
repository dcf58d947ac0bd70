"""How the report is put together; that ``prune`` fills every part is in ``test_pipeline.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from onnxprune.calibration.data import CalibrationData
from onnxprune.kernels.decision import Decision, Selection
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.outcome import Outcome, make_report
from onnxprune.recipe import Recipe
from onnxprune.report.report import Report, Speed
from onnxprune.sequential import Solved
from onnxprune.storage.report import PackReport, StoredWeight


@pytest.fixture
def outcome() -> Outcome:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 16] x) => (float[N, 8] y) { h = MatMul(x, w1)  y = MatMul(h, w2) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w1", (16, 24)), ("w2", (24, 8))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = Model(proto)
    layers, skips = find_layers(model, min_size=1)
    data = CalibrationData(({"x": np.ones((4, 16), np.float32)},), 4, False, "four rows")
    found = Outcome(model, Recipe(sparsity=0.5), layers, skips, data, data, Path("out.onnx"))
    found.solved = tuple(solved(layer.name, layer.size // 2) for layer in reversed(layers))
    return found


def solved(name: str, zeros: int) -> Solved:
    values: dict[str, Any] = dict.fromkeys(Solved.__dataclass_fields__)
    values |= {"name": name, "zeros": zeros, "error": 0.25, "damping": 0.01, "refitted": False}
    return Solved(**values)


def test_layers_come_in_graph_order(outcome: Outcome) -> None:
    report = make_report(outcome)
    assert [layer.name for layer in report.layers] == ["w1", "w2"]
    assert (report.zeros, report.weights, report.sparsity) == (288, 576, 0.5)
    assert report.layers[0].error == 0.25 and report.output == "out.onnx" and report.data == "four rows"


def test_without_kernels(outcome: Outcome) -> None:
    report = make_report(outcome)
    assert (report.kernels, report.kernels_note, report.speed) == ("", "", ())
    assert all((r.kernel, r.gain, r.kernel_note) == ("", None, "") for r in report.layers)
    assert all(r.stored == "dense" and r.stored_bytes == r.dense_bytes for r in report.layers)


def test_kernels_and_storage(outcome: Outcome) -> None:
    decisions = {
        "w1": Decision("w1", "SparseGap4MatMul", 2.5, "measured alone", 1),
        "w2": Decision("w2", reason="a kernel is no faster", gain=0.9),
    }
    outcome.selection = Selection(decisions, {1: 1.5, 2: 1.4}, "measured", "a note")
    outcome.stored = PackReport((StoredWeight("w1", "packed", 1536, 700, "why"),))
    report = make_report(outcome)
    assert (report.kernels, report.kernels_note) == ("measured", "a note")
    assert report.speed == (Speed(1, 1.5), Speed(2, 1.4))
    first, second = report.layers
    assert (first.kernel, first.gain, first.kernel_note) == ("SparseGap4MatMul", 2.5, "measured alone")
    assert (first.dense_readers, second.dense_readers) == (1, 0)
    assert (second.kernel, second.gain, second.kernel_note) == ("", 0.9, "a kernel is no faster")
    assert (first.stored, first.stored_bytes, first.note) == ("packed", 700, "why")
    assert Report.from_dict(report.to_dict()) == report


def test_notes(outcome: Outcome) -> None:
    from dataclasses import replace

    first, second = outcome.solved
    outcome.solved = (replace(first, refitted=True), replace(second, damping=0.5))
    report = make_report(outcome)
    assert [layer.note for layer in report.layers] == ["damping raised to 0.5", "kept dense, re-fitted"]
    assert report.warnings == ("damping was raised for w1: their inputs vary too little",)


@pytest.mark.parametrize(
    ("ratio", "words"), [(1.4, "ask for a little more"), (1.5, ""), (1.6, ""), (1.7, "ask for a little less")]
)
def test_smaller_shapes_that_miss_the_speed(outcome: Outcome, ratio: float, words: str) -> None:
    outcome.recipe = Recipe(pattern="structured", target_speedup="1.5x")
    outcome.structured = {"speed": [{"threads": 1, "ratio": ratio}]}
    found = [text for text in make_report(outcome).warnings if "times faster as measured" in text]
    assert len(found) == bool(words)
    assert all(words in text and f"{ratio:.2f} times" in text for text in found)
