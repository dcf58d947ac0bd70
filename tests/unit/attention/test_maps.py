"""Gates of channels are found whatever the exporter wrote; energy maps are means of 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.attention.maps import energy_map, find_gates, gate_strength
from onnxprune.io import load
from onnxprune.model import Model

Build = Callable[..., onnx.ModelProto]
HEAD = "g (float[2, 8, 6, 6] x) => (float[2, 8, 6, 6] y) { f = Relu(x)"
GATES = {
    "convolutions": """s = GlobalAveragePool(f) a = Conv(s, c1) r = Relu(a) b = Conv(r, c2)
        g = Sigmoid(b) y = Mul(f, g) }""",
    "ReduceMean and Gemm": """s = ReduceMean<axes = [2, 3], keepdims = 0>(f) a = Gemm(s, m1) r = Relu(a)
        b = MatMul(r, m2) h = HardSigmoid(b) g = Reshape(h, shape) y = Mul(g, f) }""",
    "hard sigmoid by parts": """s = GlobalAveragePool(f) a = Conv(s, c1) r = HardSwish(a) b = Conv(r, c2)
        t = Add(b, three) u = Clip(t, zero, six) g = Div(u, six) y = Mul(f, g) }""",
}
OTHERS = {
    "swish": "g = Sigmoid(f) y = Mul(f, g) }",
    "gate of space": "a = Conv(f, one) g = Sigmoid(a) y = Mul(f, g) }",
    "unbounded": "s = GlobalAveragePool(f) g = Conv(s, c3) y = Mul(f, g) }",
    "no weights": "s = GlobalAveragePool(f) g = Sigmoid(s) y = Mul(f, g) }",
    "means of something else": """n = Neg(f) s = GlobalAveragePool(n) a = Conv(s, c3) g = Sigmoid(a)
        y = Mul(f, g) }""",
}
CONSTANTS = {
    "c1": np.ones((2, 8, 1, 1), np.float32),
    "c2": np.ones((8, 2, 1, 1), np.float32),
    "c3": np.ones((8, 8, 1, 1), np.float32),
    "one": np.ones((1, 8, 1, 1), np.float32),
    "m1": np.ones((8, 2), np.float32),
    "m2": np.ones((2, 8), np.float32),
    "shape": np.array([2, 8, 1, 1], np.int64),
    "three": np.array(3, np.float32),
    "six": np.array(6, np.float32),
    "zero": np.array(0, np.float32),
}


def model(build_model: Build, body: str) -> Model:
    names = {word.strip(",()") for word in body.replace("(", " ").split()}
    used = {name: array for name, array in CONSTANTS.items() if name in names}
    return Model(build_model(f"{HEAD} {body}", used))


@pytest.mark.parametrize("name", GATES)
def test_every_form(build_model: Build, name: str) -> None:
    (gate,) = find_gates(model(build_model, GATES[name]))
    assert (gate.features, gate.gate, gate.output) == ("f", "g", "y")
    assert gate.weights == (("m2", "m1") if "Gemm" in name else ("c2", "c1"))


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_are_none(build_model: Build, name: str) -> None:
    assert find_gates(model(build_model, OTHERS[name])) == ()


def test_the_sample_has_none(digits_cnn: Path) -> None:
    assert find_gates(load(digits_cnn)) == ()


def test_strength_is_a_sum() -> None:
    gate = np.array([[0.5, 1], [0.1, 1], [0, 1]], np.float32).reshape(3, 2, 1, 1)
    np.testing.assert_allclose(gate_strength(gate), [[0.6, 0.26], [3, 3]], rtol=1e-6)
    np.testing.assert_allclose(gate_strength(gate[:1]) + gate_strength(gate[1:]), gate_strength(gate))


@given(seed=st.integers(0, 1000), rank=st.integers(1, 3), power=st.sampled_from([1.0, 2.0]))
def test_energy_by_definition(seed: int, rank: int, power: float) -> None:
    x = np.random.default_rng(seed).normal(size=(2, 3, *(4, 2, 3)[:rank])).astype(np.float32)
    found = energy_map(x, power)
    assert found.shape == (2, *x.shape[2:])
    np.testing.assert_allclose(found.reshape(2, -1).mean(1), 1, rtol=1e-5)
    np.testing.assert_allclose(energy_map(3 * x, power), found, rtol=1e-5)
    raw = (np.abs(x) ** power).sum(1)
    np.testing.assert_allclose(found * raw.reshape(2, -1).mean(1).reshape(2, *[1] * rank), raw, rtol=1e-4)


def test_nothing_is_as_important_as_anything() -> None:
    np.testing.assert_array_equal(energy_map(np.zeros((1, 2, 3, 3), np.float32)), np.ones((1, 3, 3)))
