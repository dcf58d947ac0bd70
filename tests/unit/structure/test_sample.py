"""One run tells the shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.errors import ModelError
from onnxprune.inmemory import session_of
from onnxprune.structure.sample import made_up, sample, sample_few
from tests.unit.structure.graphs import graph

TEXT = """(float[N, L, 6] x) => (float[N, L, C] y) { s = Shape(x) z = ConstantOfShape(s) a = Add(x, z)
    y = MatMul(a, w) }"""


def test_shapes_and_numbers() -> None:
    model, feeds = graph(TEXT, {"w": (6, 4)})
    sizes, numbers = sample(model, feeds)
    assert sizes["x"] == sizes["a"] == (2, 5, 6) and sizes["y"] == (2, 5, 4) and sizes["w"] == (6, 4)
    assert numbers["s"].tolist() == [2, 5, 6] and "a" not in numbers


def test_a_sample_that_does_not_fit() -> None:
    model, _ = graph(TEXT, {"w": (6, 4)})
    with pytest.raises(ModelError) as caught:
        sample(model, {"x": np.zeros((2, 5, 7), np.float32)})
    assert "--batch-size 1" in (caught.value.hint or "")


def test_what_only_runs_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime 1.32 optimises some graphs, of which all values are given out, to what it refuses."""
    model, feeds = graph(TEXT, {"w": (6, 4)})

    class Refusing:
        def __init__(self, session: Any) -> None:
            self.get_inputs = session.get_inputs

        def run(self, *_: Any) -> Any:
            raise RuntimeError("'Cubic' mode only supports")

    def made(*args: Any, optimize: bool, **kwargs: Any) -> Any:
        session = session_of(*args, optimize=optimize, **kwargs)
        return Refusing(session) if optimize else session

    monkeypatch.setattr("onnxprune.structure.sample.session_of", made)
    sizes, numbers = sample(model, feeds)
    assert sizes["y"] == (2, 5, 4) and numbers["s"].tolist() == [2, 5, 6]


def test_inputs_are_made_up() -> None:
    model, _ = graph(TEXT, {"w": (6, 4)})
    feeds = made_up(model)
    assert feeds["x"].shape[0] == 2 and sample(model, feeds)[0]["y"][-1] == 4


def test_two_samples_of_a_batch_and_no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = graph(TEXT, {"w": (6, 4)})
    kinds: list[str] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        session = session_of(*args, **kwargs)
        kinds[:] = [item.type for item in session.get_outputs()]
        return session

    monkeypatch.setattr("onnxprune.structure.sample.session_of", watched)
    sizes, _ = sample_few(model, {"x": np.concatenate([feeds["x"]] * 8)})
    assert sizes["x"] == (2, 5, 6) and sizes["y"] == (2, 5, 4)
    assert set(kinds) == {"tensor(int64)"}


def test_a_batch_that_cannot_be_cut_runs_as_it_is() -> None:
    model, _ = graph(
        "(float[N, 6] x) => (float[M, C] y) { a = Reshape(x, to) y = MatMul(a, w) }",
        {"to": [3, -1], "w": (8, 4)},
    )
    assert sample_few(model, {"x": np.zeros((4, 6), np.float32)})[0]["y"] == (3, 4)
