"""Saliencies of all layers in one pass, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.allocation.budget import GRID
from onnxprune.allocation.rules.facts import Facts
from onnxprune.allocation.scores import score_layers, scored
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model

TEXT = """g (int64[N] i, float[N, 8] x) => (float[N, 6] y, float[N, 4] z) {
    y = MatMul(x, w)  z = Gather(table, i) }"""
W = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
TABLE = np.arange(1.0, 21.0, dtype=np.float32).reshape(5, 4)
IDS = np.array([3, 3])


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    return Model(build_model(TEXT, {"w": W, "table": TABLE}))


@pytest.fixture
def layers(model: Model) -> tuple[Layer, ...]:
    return find_layers(model, min_size=1)[0]


def scored_all(model: Model, layers: tuple[Layer, ...], highest: float, **options: Any) -> dict[str, Facts]:
    with ArrayStore(2**20) as store:
        streams = Streams(model, None, [{"x": X, "i": IDS}], {"x", "i"}, store, 1)
        return score_layers(model, layers, streams, [None], highest, seed=0, **options)[0]


def test_magnitudes_are_left_alone(model: Model, layers: tuple[Layer, ...]) -> None:
    found = scored_all(model, layers, 0.9, by_inputs=False)
    assert np.allclose(found["w"].quantiles, np.quantile(np.abs(W), GRID))
    assert found["w"].highest == 0.9 and found["w"].outliers == 0.0


def test_shares_of_the_output(model: Model, layers: tuple[Layer, ...]) -> None:
    seen: list[str] = []
    found = scored_all(model, layers, 1.0, by_inputs=True, on_layer=seen.append)
    norms = np.sqrt((X**2).mean(0))
    score = np.abs(W.T) * norms
    energy = ((X @ W) ** 2).mean(0).sum()
    assert np.allclose(found["w"].quantiles, np.quantile(score, GRID) ** 2 / energy, rtol=1e-5)
    # Rows of a table count alike, one that was looked up a little more
    times = 1 + np.log1p(np.bincount(IDS, minlength=5))[:, None]
    rows = TABLE**2 / (TABLE**2).mean(1, keepdims=True) * times
    wanted = np.quantile(np.sqrt(rows), GRID) ** 2 / rows.sum()
    assert np.allclose(found["table"].quantiles, wanted, rtol=1e-5)
    assert sorted(seen) == ["table", "w"] and list(found) == [layer.name for layer in layers]


def test_outliers(build_model: Callable[..., onnx.ModelProto]) -> None:
    weight = np.ones((10, 10), np.float32)
    weight[0, :3] = 100
    text = "g (float[N, 10] x) => (float[N, 10] y) { y = MatMul(x, w) }"
    (layer,) = find_layers(Model(build_model(text, {"w": weight})), min_size=1)[0]
    assert scored(layer, weight.T[None], None, 1.0).outliers == pytest.approx(0.03)
