"""Recurrent layers: what they join, what they pin, and that removal equals masking."""

from __future__ import annotations

import pytest

from tests.unit.structure.graphs import (
    Case,
    check,
    pinned,
)

RNN = "(float[L, N, 3] x) => (float[L, D, N, C] y)"
CASES: dict[str, Case] = {
    "LSTM": Case(
        f"{RNN} {{ a, h, c = LSTM<hidden_size = 6>(x, w, r, b) y = MatMul(a, w9) }}",
        {"w": (1, 24, 3), "r": (1, 24, 6), "b": (1, 48), "w9": (6, 4)},
        [("hidden", 6)],
    ),
    "LSTM, peepholes and states, last state": Case(
        "(float[L, N, 3] x) => (float[D, N, C] y) {"
        " a, h, c = LSTM<hidden_size = 6>(x, w, r, b, , h0, c0, p)"
        " s = Add(h, c) y = MatMul(s, w9) }",
        {
            "w": (1, 24, 3),
            "r": (1, 24, 6),
            "b": (1, 48),
            "w9": (6, 4),
            "h0": (1, 2, 6),
            "c0": (1, 2, 6),
            "p": (1, 18),
        },
        [("hidden", 6)],
    ),
    "LSTM, two directions and two layers": Case(
        """(float[L, N, 3] x) => (float[L, N, C] y) {
        a = LSTM<hidden_size = 6, direction = "bidirectional">(x, w, r, b)
        t = Transpose<perm = [0, 2, 1, 3]>(a) f = Reshape(t, to)
        a2 = LSTM<hidden_size = 6, direction = "bidirectional">(f, w2, r2, b2)
        t2 = Transpose<perm = [0, 2, 1, 3]>(a2) f2 = Reshape(t2, to2) y = MatMul(f2, w9) }""",
        {
            "w": (2, 24, 3),
            "r": (2, 24, 6),
            "b": (2, 48),
            "to": [0, 0, -1],
            "w9": (12, 4),
            "w2": (2, 24, 12),
            "r2": (2, 24, 6),
            "b2": (2, 48),
            "to2": [0, 0, 12],
        },
        [("hidden", 6), ("hidden", 6)],
    ),
    "GRU, zeros of a shape": Case(
        """(float[L, N, 3] x) => (float[L, N, C] y) { s = Shape(x) n = Gather(s, one)
        t = Concat<axis = 0>(dirs, n, six) h = ConstantOfShape(t)
        a = GRU<hidden_size = 6, linear_before_reset = 1>(x, w, r, b, , h) q = Squeeze(a, one)
        y = MatMul(q, w9) }""",
        {"w": (1, 18, 3), "r": (1, 18, 6), "b": (1, 36), "w9": (6, 4), "one": [1], "dirs": [1], "six": [6]},
        [("hidden", 6)],
    ),
    "RNN": Case(
        f"{RNN} {{ a = RNN<hidden_size = 6>(x, w, r) y = MatMul(a, w9) }}",
        {"w": (1, 6, 3), "r": (1, 6, 6), "w9": (6, 4)},
        [("hidden", 6)],
    ),
    "after a convolution": Case(
        "(float[N, 3, L] x) => (float[P, D, N, C] y) { v = Conv(x, wc) t = Transpose<perm = [2, 0, 1]>(v)"
        " a = GRU<hidden_size = 6>(t, w, r) y = MatMul(a, w9) }",
        {"wc": (8, 3, 2), "w": (1, 18, 8), "r": (1, 18, 6), "w9": (6, 4)},
        [("channel", 8), ("hidden", 6)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_removal_is_masking(case: Case) -> None:
    check(case)


def test_states_that_leave_the_model() -> None:
    text = """(float[L, N, 3] x) => (float[L, D, N, C] y, float[D, N, H] h) {
        a, h = GRU<hidden_size = 6>(x, w, r)
        y = MatMul(a, w9) }"""
    assert "graph output 'h'" in pinned(text, {"w": (1, 18, 3), "r": (1, 18, 6), "w9": (6, 4)})
