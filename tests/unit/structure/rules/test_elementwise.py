"""Operators with broadcasting: what they join, what they pin, and that removal equals masking."""

from __future__ import annotations

import pytest

from tests.unit.structure.graphs import (
    CONV,
    FIRST,
    IMAGE,
    LAST,
    TOKENS,
    Case,
    check,
    pinned,
)

CASES: dict[str, Case] = {
    "gated": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) b = MatMul(x, w1) s = Sigmoid(a) g = Mul(a, s) h = Mul(g, b)"
        " y = MatMul(h, w2) }",
        {"w0": (6, 8), "w1": (6, 8), "w2": (8, 4)},
        [("neuron", 8)],
    ),
    "residual": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Add(a, c) y = MatMul(d, w2) }}",
        {"w0": (6, 8), "w1": (8, 8), "w2": (8, 4)},
        [("width", 8)],
    ),
    "scale, shift and one slope": Case(
        f"{IMAGE} {{ {CONV} b = Mul(s, a) c = Sub(b, t) d = PRelu(c, one) y = Conv(d, w9) }}",
        FIRST | LAST | {"s": (1, 8, 1, 1), "t": (8, 1, 1), "one": (1, 1, 1)},
        [("channel", 8)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_removal_is_masking(case: Case) -> None:
    check(case)


def test_positions_that_cannot_go_pin_what_they_are_joined_with() -> None:
    text = """(float[N, 6] x, float[N, 8] z) => (float[N, C] y) { a = MatMul(x, w0) b = Add(a, z)
        y = MatMul(b, w1) }"""
    assert "it is a dimension of the graph input 'z'" in pinned(text, {"w0": (6, 8), "w1": (8, 4)})
