"""Layers get parameters of their own; values stay the same, matrices stay shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.model import Model
from onnxprune.passes.own_parameters import own_parameters
from onnxprune.runtime import session
from onnxprune.structure.find import find_structure
from tests.unit.structure.graphs import assert_removal_is_masking, graph, summary

NORMS = """(float[N, 3, H, W] x) => (float[N, C, P, Q] y) { a = Conv(x, w0)
    b = BatchNormalization(a, one, zero, zero, one) c = Conv(b, w1)
    d = BatchNormalization(c, one, zero, zero, one) y = Conv(d, w2) }"""
STORED = """(float[L, N, 3] x) => (float[L, N, C] y) { a = GRU<hidden_size = 6>(x, w, r, , , h)
    q = Squeeze(a, one) b = GRU<hidden_size = 6>(q, v, r2, , , h) p = Squeeze(b, one) y = MatMul(p, w9) }"""
MADE = """(float[L, N, 3] x) => (float[L, N, C] y) { s = Shape(x) n = Gather(s, one)
    t = Concat<axis = 0>(two, n, six) z = Expand(zero, t) h, h2 = Split<axis = 0>(z)
    a = GRU<hidden_size = 6>(x, w, r, , , h) q = Squeeze(a, one)
    b = GRU<hidden_size = 6>(q, v, r2, , , h2) p = Squeeze(b, one) y = MatMul(p, w9) }"""
RNN = {"w": (1, 18, 3), "r": (1, 18, 6), "v": (1, 18, 6), "r2": (1, 18, 6), "w9": (6, 4), "one": [1]}
CASES = {
    "scales": (
        NORMS,
        {
            "w0": (8, 3, 1, 1),
            "w1": (8, 8, 1, 1),
            "w2": (5, 8, 1, 1),
            "one": np.ones(8, np.float32),
            "zero": np.zeros(8, np.float32),
        },
        [("channel", 8), ("channel", 8)],
    ),
    "stored states": (STORED, RNN | {"h": (1, 2, 6)}, [("hidden", 6), ("hidden", 6)]),
    "states from a shape": (
        MADE,
        RNN | {"two": [2], "six": [6], "zero": np.zeros(1, np.float32)},
        [("hidden", 6), ("hidden", 6)],
    ),
}


def run(model: Model, feeds: dict[str, np.ndarray]) -> Any:
    return session(model.proto, threads=1).run(None, feeds)[0]


@pytest.mark.parametrize(("text", "weights", "groups"), CASES.values(), ids=CASES)
def test_layers_part(text: str, weights: dict[str, Any], groups: list[tuple[str, int]]) -> None:
    model, feeds = graph(text, weights)
    before = run(model, feeds)
    assert summary(find_structure(model, feeds, 1)) == groups[:1]
    assert own_parameters(model)
    assert np.array_equal(run(model, feeds), before)
    assert summary(assert_removal_is_masking(model, feeds)) == groups
    assert not own_parameters(model)


def test_matrices_stay_shared() -> None:
    text = "(float[N, L, 6] x) => (float[N, L, C] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    model, _ = graph(text, {"w": (6, 6)})
    assert not own_parameters(model) and len(model.index.tensors) == 1
