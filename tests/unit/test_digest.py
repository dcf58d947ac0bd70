"""Digests change with what they are of, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import digest
from onnxprune.model import Model
from onnxprune.userfunction import load_function

TEXT = "g (float[N, 4] x) => (float[N, 3] y) { a = MatMul(x, w) y = Relu(a) }"
W = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_of_a_model(build_model: Callable[..., onnx.ModelProto], tmp_path: Path) -> None:
    first = digest.of_model(Model(build_model(TEXT, {"w": W})))
    again = build_model(TEXT, {"w": W})
    again.doc_string, again.producer_name = "of no matter", "somebody"
    assert digest.of_model(Model(again, tmp_path / "net.onnx")) == first
    others = [
        build_model(TEXT, {"w": W + np.float32(1e-6)}),
        build_model(TEXT.replace("Relu", "Sigmoid"), {"w": W}),
        build_model(TEXT.replace("float[N, 4] x", "float[2, 4] x"), {"w": W}),
        build_model(TEXT, {"w": W}, opset=18),
    ]
    assert len({first, *(digest.of_model(Model(other)) for other in others)}) == 5


def test_of_a_function(tmp_path: Path) -> None:
    found = []
    for folder, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "task.py"
        path.write_text(f"def score(session):\n    return {text}\nother = score\n")
        found.append(digest.of_function(load_function(f"{path}:score")))
    assert found[0] == found[1] != found[2]
    assert digest.of_function(load_function(f"{tmp_path}/a/task.py:other")) != found[0]


def test_of_the_program_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(digest.of_program()) == 64 and digest.of_program() == digest.of_program()
    assert digest.of_machine(1) != digest.of_machine(2)
    before = digest.of_machine(1)
    monkeypatch.setattr("onnxprune.machine.cpu_name", lambda: "another processor")
    assert digest.of_machine(1) != before
