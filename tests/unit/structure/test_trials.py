"""Feeds of other sizes change what is free, together where it is one size."""

from __future__ import annotations

import numpy as np

from onnxprune.structure.trials import of_other_magnitude, resized
from tests.unit.structure.graphs import graph

TEXT = """(float[N, L, 6] x, int64[N, L] m) => (float[N, L, 6] y) { f = Cast<to = 1>(m) a = Unsqueeze(f, last)
    y = Mul(x, a) }"""


def test_sizes() -> None:
    model, feeds = graph(TEXT, {"last": [2]})
    shapes = [(feed["x"].shape, feed["m"].shape) for feed in resized(model, feeds)]
    assert shapes == [((3, n, 6), (3, n)) for n in (6, 10, 2, 5)]


def test_fixed_sizes_stay() -> None:
    model, feeds = graph("(float[2, 6] x) => (float[2, 6] y) { y = Relu(x) }", {})
    assert not [*resized(model, feeds)]


def test_dimensions_without_a_name() -> None:
    model, feeds = graph(TEXT, {"last": [2]})
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim[:2]:
            dim.Clear()
    feeds = {"x": np.zeros((4, 4, 6), np.float32), "m": np.zeros((4, 4), np.int64)}
    assert next(resized(model, feeds))["m"].shape == (3, 5)


def test_magnitudes() -> None:
    _, feeds = graph(TEXT, {"last": [2]})
    found = [*of_other_magnitude(feeds)]
    assert np.abs(found[2]["x"]).max() > 1e4 and all(feed["m"] is feeds["m"] for feed in found)
