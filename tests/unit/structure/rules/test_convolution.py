"""Convolutions: what they join, what they pin, and that removal equals masking."""

from __future__ import annotations

import pytest

from tests.unit.structure.graphs import (
    CONV,
    FIRST,
    IMAGE,
    LAST,
    Case,
    check,
    pinned,
)

CASES: dict[str, Case] = {
    "plain": Case(f"{IMAGE} {{ {CONV} y = Conv(a, w9) }}", FIRST | LAST, [("channel", 8)]),
    "batch norm and slope": Case(
        f"{IMAGE} {{ {CONV} b = BatchNormalization(a, g, h, m, var) c = PRelu(b, s) y = Conv(c, w9) }}",
        FIRST | LAST | {"g": (8,), "h": (8,), "m": (8,), "var": (8,), "s": (8, 1, 1)},
        [("channel", 8)],
    ),
    "a window of one position": Case(
        "(float[N, 5, 6] x) => (float[N, L, C] y) { a = MatMul(x, w0) b = Conv(a, w2, b2) c = Relu(b)"
        " y = MatMul(c, w1) }",
        {"w0": (6, 8), "w2": (5, 5, 1), "b2": (5,), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "a window of one position on one axis": Case(
        "(float[N, 3, 5, 6] x) => (float[N, L, M, C] y) { a = MatMul(x, w0)"
        " b = Conv<pads = [1, 0, 1, 0]>(a, w2) y = MatMul(b, w1) }",
        {"w0": (6, 8), "w2": (4, 3, 3, 1), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "depthwise": Case(
        f"{IMAGE} {{ {CONV} b = Conv<group = 8>(a, d, e) y = Conv(b, w9) }}",
        FIRST | LAST | {"d": (8, 1, 3, 3), "e": (8,)},
        [("channel", 8)],
    ),
    "depthwise with two outputs each": Case(
        f"{IMAGE} {{ {CONV} b = Conv<group = 8>(a, d, e) y = Conv(b, w9) }}",
        FIRST | {"d": (16, 1, 3, 3), "e": (16,), "w9": (5, 16, 1, 1)},
        [("channel", 8)],
    ),
    "many small groups": Case(
        f"{IMAGE} {{ {CONV} b = Conv<group = 4>(a, d, e) c = Relu(b) y = Conv(c, w9) }}",
        FIRST | {"d": (12, 2, 3, 3), "e": (12,), "w9": (5, 12, 1, 1)},
        [("channel", 4)],
    ),
    "few large groups": Case(
        f"{IMAGE} {{ {CONV} b = Conv<group = 2>(a, d, e) y = Conv(b, w9) }}",
        FIRST | {"d": (12, 4, 3, 3), "e": (12,), "w9": (5, 12, 1, 1)},
        [("channel", 4), ("channel", 6)],
    ),
    "transposed": Case(
        f"{IMAGE} {{ a = ConvTranspose<strides = [2, 2]>(x, w0, b0) y = Conv(a, w9) }}",
        {"w0": (3, 8, 2, 2), "b0": (8,)} | LAST,
        [("channel", 8)],
    ),
    "transposed reads": Case(
        f"{IMAGE} {{ {CONV} y = ConvTranspose(a, w9) }}", FIRST | {"w9": (8, 5, 2, 2)}, [("channel", 8)]
    ),
    "transposed, depthwise": Case(
        f"{IMAGE} {{ {CONV} b = ConvTranspose<group = 8>(a, d, e) y = Conv(b, w9) }}",
        FIRST | {"d": (8, 2, 2, 2), "e": (16,), "w9": (5, 16, 1, 1)},
        [("channel", 8)],
    ),
    "transposed, few large groups": Case(
        f"{IMAGE} {{ {CONV} b = ConvTranspose<group = 2>(a, d, e) y = Conv(b, w9) }}",
        FIRST | {"d": (8, 3, 2, 2), "e": (6,), "w9": (5, 6, 1, 1)},
        [("channel", 3), ("channel", 4)],
    ),
    "one axis": Case(
        "(float[N, 3, L] x) => (float[N, C, P] y) { a = Conv(x, w0, b0) b = MaxPool<kernel_shape = [2]>(a)"
        " y = Conv(b, w9) }",
        {"w0": (8, 3, 2), "b0": (8,), "w9": (5, 8, 1)},
        [("channel", 8)],
    ),
    "three axes": Case(
        "(float[N, 2, L, 4, 4] x) => (float[N, C, P, Q, R] y) { a = Conv(x, w0, b0) y = Conv(a, w9) }",
        {"w0": (8, 2, 2, 2, 2), "b0": (8,), "w9": (5, 8, 1, 1, 1)},
        [("channel", 8)],
    ),
    "fused activation": Case(
        f'{IMAGE} {{ a = com.microsoft.FusedConv<activation = "Relu">(x, w0, b0) y = Conv(a, w9) }}',
        FIRST | LAST,
        [("channel", 8)],
    ),
    "fused addition": Case(
        f'{IMAGE} {{ z = Conv(x, w1) a = com.microsoft.FusedConv<activation = "Relu">(x, w0, b0, z)'
        " y = Conv(a, w9) }",
        FIRST | LAST | {"w1": (8, 3, 3, 3)},
        [("channel", 8)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_removal_is_masking(case: Case) -> None:
    check(case)


def test_a_window_pins_what_it_moves_over() -> None:
    text = """(float[N, 4, L] x) => (float[N, C, P] y) { a = MatMul(x, w0) y = Conv(a, w1) }"""
    assert "moves over it" in pinned(text, {"w0": (5, 8), "w1": (3, 4, 2)})
