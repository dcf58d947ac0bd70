"""Plans are read as they were written; files that are none are refused with a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.allocation import planfile
from onnxprune.errors import UsageError
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.solvers.patterns import Pattern

TEXT = "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, first)  r = Relu(a)  y = MatMul(r, second) }"


@pytest.fixture(scope="module")
def layers(build_model: Callable[..., onnx.ModelProto]) -> tuple[Layer, ...]:
    weights = {name: np.ones((8, 8), np.float32) for name in ("first", "second")}
    return find_layers(Model(build_model(TEXT, weights)), min_size=1)[0]


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_round_trip(tmp_path: Path, layers: tuple[Layer, ...]) -> None:
    zeros, patterns = {"first": 13, "second": 48}, {"second": Pattern.parse("block:4x1")}
    path = written(tmp_path / "p.json", planfile.document(layers, zeros, patterns))
    assert planfile.read(path, layers, Pattern()) == (zeros, patterns)


def test_layers_without_a_line_stay_dense(tmp_path: Path, layers: tuple[Layer, ...]) -> None:
    path = written(
        tmp_path / "p.json", {"schema_version": 1, "layers": {"first": {"sparsity": 0.99, "note": "x"}}}
    )
    assert planfile.read(path, layers, Pattern())[0] == {"first": 63, "second": 0}
    assert planfile.read(path, layers, Pattern.parse("2:4"))[0] == {"first": 32, "second": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "cannot read plan"),
        ("[" * 100_000, "no JSON"),
        ([], "no object 'layers'"),
        ({"layers": {}}, "schema_version None, wanted 1"),
        ({"schema_version": 2, "layers": {}}, "schema_version 2, wanted 1"),
        ({"schema_version": 1, "model": "a.onnx", "layers": {"z": 0.5}}, "it is of a.onnx"),
        ({"schema_version": 1, "layers": {"first": 0.9999}}, "lose all of its 64 weights"),
        ({"schema_version": 1, "layers": {"frist": {}}}, "no prunable weight 'frist'"),
        ({"schema_version": 1, "layers": {"first": {}}}, "sparsity of 'first' is None"),
        ({"schema_version": 1, "layers": {"first": {"sparsity": 1.5}}}, "is 1.5, wanted a share"),
        ({"schema_version": 1, "layers": {"first": {"sparsity": 1}}}, "is 1, wanted a share"),
        (
            {"schema_version": 1, "layers": {"first": {"sparsity": 0, "pattern": "neuron"}}},
            "for all layers",
        ),
        ({"schema_version": 1, "layers": {"first": {"sparsity": True}}}, "is True, wanted a share"),
        ({"schema_version": 1, "layers": {"first": "half"}}, "is None, wanted a share"),
        ({"schema_version": 1, "layers": {"first": {"sparsity": 0.5, "pattern": "4x1"}}}, "'first': pattern"),
    ],
)
def test_what_is_no_plan(tmp_path: Path, layers: tuple[Layer, ...], content: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        planfile.read(written(tmp_path / "p.json", content), layers, Pattern())
    if "frist" in message:
        assert caught.value.hint == "did you mean first?"


def test_a_number_is_a_sparsity(tmp_path: Path, layers: tuple[Layer, ...]) -> None:
    path = written(tmp_path / "p.json", {"schema_version": 1, "layers": {"first": 0.5}})
    assert planfile.read(path, layers, Pattern())[0] == {"first": 32, "second": 0}


def test_a_missing_file(tmp_path: Path, layers: tuple[Layer, ...]) -> None:
    with pytest.raises(UsageError, match="cannot read plan"):
        planfile.read(tmp_path / "none.json", layers, Pattern())
