"""One run tells the shapes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import ModelError
from onnxprune.structure.sample import made_up, sample
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
    with pytest.raises(ModelError):
        sample(model, {"x": np.zeros((2, 5, 7), np.float32)})


def test_inputs_are_made_up() -> None:
    model, _ = graph(TEXT, {"w": (6, 4)})
    feeds = made_up(model)
    assert feeds["x"].shape[0] == 2 and sample(model, feeds)[0]["y"][-1] == 4
