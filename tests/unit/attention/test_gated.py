"""Outputs of gated convolutions count as far as their gate is open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.attention.gated import LEAST, gate_weights, gated_layers, weights_of
from onnxprune.attention.guide import make_guide
from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.calibration.store import ArrayStore
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe

# Two gated convolutions, the second one depthwise; the gates are what their biases say, whatever comes in.
TEXT = """g (float[N, 3, 4, 4] x) => (float[N, 4, 4, 4] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) f = Relu(a)
    s = GlobalAveragePool(f) t = Conv(s, squeeze) r = Relu(t) u = Conv(r, excite, open1) g = Sigmoid(u)
    h = Mul(f, g)
    c = Conv<pads = [1, 1, 1, 1], group = 4>(h, w2) e = HardSwish(c)
    s2 = ReduceMean<axes = [2, 3]>(e) t2 = Conv(s2, squeeze) r2 = Relu(t2) u2 = Conv(r2, excite, open2)
    g2 = Sigmoid(u2) k = Mul(g2, e) y = Conv(k, w3) }"""
GATE = np.array([0.8, 0.4, 0.02, 0.8], np.float32)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def logit(gate: np.ndarray) -> np.ndarray:
    return np.log(gate / (1 - gate)).astype(np.float32)


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    return {
        "w1": noise(4, 3, 3, 3),
        "b1": noise(4),
        "w2": noise(4, 1, 3, 3),
        "w3": noise(4, 4, 1, 1),
        "squeeze": np.zeros((2, 4, 1, 1), np.float32),
        "excite": np.zeros((4, 2, 1, 1), np.float32),
        "open1": logit(GATE),
        "open2": logit(GATE[::-1]),
    }


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto], weights: dict[str, np.ndarray]) -> Model:
    return Model(build_model(TEXT, weights))


def layers_of(model: Model) -> tuple[Layer, ...]:
    return find_layers(model, min_size=1)[0]


def feeds(model: Model) -> CalibrationData:
    return from_iterable(model, {"x": noise(6, 3, 4, 4)}, Recipe(batch_size=4))


def found(model: Model) -> dict[str, np.ndarray]:
    with ArrayStore(2**20) as store:
        return gate_weights(model, layers_of(model), feeds(model), store, 1)


def test_which_convolutions(model: Model) -> None:
    pairs = gated_layers(model, layers_of(model))
    assert [(gate.gate, layer.name) for gate, layer in pairs] == [("g", "w1"), ("g2", "w2")]


def test_by_hand(model: Model) -> None:
    rows = np.maximum(GATE / np.sqrt(np.mean(GATE.astype(np.float64) ** 2)), LEAST)
    assert rows[2] == LEAST  # an output that is hardly seen still counts a little
    rows /= rows.mean()
    weights = found(model)
    assert list(weights) == ["w1", "w2"]
    assert weights["w1"].shape == (1, 4) and weights["w2"].shape == (4, 1)  # groups, outputs of each
    np.testing.assert_allclose(weights["w1"][0], rows, rtol=1e-4)
    np.testing.assert_allclose(weights["w2"][:, 0], rows[::-1], rtol=1e-4)


@pytest.mark.parametrize("beside", ["z = Neg(f)", "z = Add(a, f)"])
def test_what_is_read_beside_its_gate_counts_in_full(
    build_model: Callable[..., onnx.ModelProto], weights: dict[str, np.ndarray], beside: str
) -> None:
    text = TEXT.replace("float[N, 4, 4, 4] y)", "float[N, 4, 4, 4] y, float[N, 4, 4, 4] z)")
    other = Model(build_model(text.replace("y = Conv(k, w3)", f"{beside} y = Conv(k, w3)"), weights))
    assert list(found(other)) == ["w2"]


def test_another_number_of_channels(model: Model) -> None:
    layer = layers_of(model)[0]
    assert weights_of(np.ones(3), layer) is None and weights_of(np.zeros(4), layer) is None
    np.testing.assert_array_equal(weights_of(np.full(4, 7.0), layer), np.ones((1, 4)))


def test_only_when_asked_for(model: Model) -> None:
    data, layers = feeds(model), layers_of(model)
    for asked, names in ((("channel",), ["w1", "w2"]), (("head", "token"), [])):
        guide = make_guide(model, layers, data, Recipe(attention=asked))
        assert list(guide.rows) == names and not guide.costs


def test_whole_run(
    build_model: Callable[..., onnx.ModelProto], weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Of a layer whose gate is nearly shut for one channel, that channel loses its weights first."""
    onnx.save(build_model(TEXT, weights), tmp_path / "m.onnx")
    kept = {}
    for asked in ("off", "channel"):
        report = prune(
            tmp_path / "m.onnx",
            tmp_path / f"{asked}.onnx",
            data=noise(40, 3, 4, 4),
            attention=[asked],
            include=["w1"],
            min_size=1,
            sparsity=0.5,
            criterion="magnitude",
            refit=False,
            format="dense",
            threads=1,
        )
        assert not any("changed nothing" in warning for warning in report.warnings)
        (w1,) = (t for t in onnx.load(tmp_path / f"{asked}.onnx").graph.initializer if t.name == "w1")
        kept[asked] = np.count_nonzero(onnx.numpy_helper.to_array(w1).reshape(4, -1), axis=1)
    assert kept["off"].sum() == kept["channel"].sum() == 54
    assert kept["channel"][2] < kept["off"][2]
