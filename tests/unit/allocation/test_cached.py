"""What was measured is read back as it was written, or not at all; plan.py's tests say when it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.allocation import cached
from onnxprune.allocation.sensitivity import Sensitivity
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.solvers.patterns import Pattern

LEVELS = (0.6, 0.85)
FOUND = Sensitivity(
    {"w": (0.1, 0.5)}, {"w": (0.01, 0.05)}, LEVELS, {}, {Pattern.parse("block:4x1"): {"w": (0.2, 0.7)}}
)


@pytest.fixture(scope="module")
def layers(build_model: Callable[..., onnx.ModelProto]) -> tuple[Layer, ...]:
    text = "g (float[N, 8] x) => (float[N, 8] y) { y = MatMul(x, w) }"
    return find_layers(Model(build_model(text, {"w": np.eye(8, dtype=np.float32)})), min_size=1)[0]


def test_round_trip(tmp_path: Path, layers: tuple[Layer, ...]) -> None:
    cached.write(tmp_path / "a" / "b.json", FOUND)
    assert cached.read(tmp_path / "a" / "b.json", layers, LEVELS, True, list(FOUND.others)) == FOUND


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"output": {}, "error": {}, "others": {}}'])
def test_damaged_files_are_no_measurement(tmp_path: Path, layers: tuple[Layer, ...], text: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    assert cached.read(path, layers, LEVELS, True, []) is None


def test_what_is_missing_is_measured_again(tmp_path: Path, layers: tuple[Layer, ...]) -> None:
    path = tmp_path / "b.json"
    cached.write(path, FOUND)
    assert cached.read(path, layers, (0.5,), True, []) is None  # other levels
    assert cached.read(path, layers, LEVELS, True, [Pattern.parse("block:16x1")]) is None
    document = json.loads(path.read_text())
    document["output"] = {}
    path.write_text(json.dumps(document))
    assert cached.read(path, layers, LEVELS, True, []) is None
    assert cached.read(path, layers, LEVELS, False, []) is not None  # errors alone are enough


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cached.write(tmp_path / "file" / "b.json", FOUND)
    assert (tmp_path / "file").read_text() == "" and [p.name for p in tmp_path.iterdir()] == ["file"]
