"""Which layers make the model's answers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.layers import find_layers
from onnxprune.layers.heads import heads
from onnxprune.model import Model
from tests.unit.layers.conftest import Build


@pytest.mark.parametrize(
    ("end", "last"),
    [
        ("y = MatMul(h, w2)", {"w2"}),
        ("k = MatMul(h, w2) b = Add(k, c) y = Softmax(b)", {"w2"}),
        ("k = MatMul(h, w2) y = Add(c, k)", {"w2"}),
        ("k = MatMul(h, w2) y = Relu(k)", set()),
        ("k = MatMul(h, w2) y = Add(k, h)", set()),
    ],
)
def test_heads_make_the_answers(build_model: Build, end: str, last: set[str]) -> None:
    text = f"g (float[N, 8] x) => (float[N, 8] y) {{ a = MatMul(x, w1) h = Relu(a) {end} }}"
    weights = {"w1": np.eye(8, dtype=np.float32), "w2": np.eye(8, dtype=np.float32)}
    model = Model(build_model(text, weights | {"c": np.ones(8, np.float32)}))
    assert heads(model, find_layers(model, min_size=1)[0]) == last


def test_both_weights_of_a_recurrent_node(build_model: Build) -> None:
    text = """g (float[T, N, 8] x) => (float[T, 1, N, 5] y) {
        h = LSTM<hidden_size=8>(x, W, R) s = Squeeze(h, one) y = RNN<hidden_size=5>(s, V, S) }"""
    shapes = {"W": (1, 32, 8), "R": (1, 32, 8), "V": (1, 5, 8), "S": (1, 5, 5)}
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    model = Model(build_model(text, weights | {"one": np.array([1])}))
    assert heads(model, find_layers(model, min_size=1)[0]) == {"V", "S"}
