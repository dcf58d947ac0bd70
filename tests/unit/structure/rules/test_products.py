"""Products with weights: what they join, what they pin, and that removal equals masking."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.structure.graphs import (
    TOKENS,
    Case,
    check,
    pinned,
)

FLAT = "(float[N, 6] x) => (float[N, C] y)"
CASES: dict[str, Case] = {
    "MatMul": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) b = Add(a, b0) c = Erf(b) y = MatMul(c, w1) }}",
        {"w0": (6, 8), "b0": (8,), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "Gemm": Case(
        f"{FLAT} {{ a = Gemm<transB = 1, alpha = 0.5>(x, w0, b0) b = Tanh(a) y = Gemm(b, w1) }}",
        {"w0": (8, 6), "b0": (1, 8), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "Gemm from the left": Case(
        "(float[6, N] x) => (float[C, N] y) { a = Gemm(w0, x, b0) b = Relu(a) y = Gemm<transA = 1>(w1, b) }",
        {"w0": (8, 6), "b0": (8, 1), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "MatMul from the left, mixing tokens": Case(
        "(float[N, 6, 5] x) => (float[N, C, D] y) { a = MatMul(w0, x) b = Relu(a) y = MatMul(w1, b) }",
        {"w0": (8, 6), "w1": (4, 8)},
        [("neuron", 8)],
    ),
    "a weight for each of three": Case(
        "(float[3, L, 6] x) => (float[3, L, C] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }",
        {"w0": (3, 6, 8), "w1": (3, 8, 4)},
        [("neuron", 8)],
    ),
    "vector": Case(
        "(float[N, 6] x) => (float[N] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }",
        {"w0": (6, 8), "w1": (8,)},
        [("neuron", 8)],
    ),
    "Einsum": Case(
        f'{TOKENS} {{ a = Einsum<equation = "nlk, mk -> nml">(x, w0) b = Relu(a)'
        ' y = Einsum<equation = "nml, mc -> nlc">(b, w1) }',
        {"w0": (8, 6), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "FusedMatMul": Case(
        f"{TOKENS} {{ a = com.microsoft.FusedMatMul<transB = 1>(x, w0) b = com.microsoft.BiasGelu(a, b0)"
        " y = MatMul(b, w1) }",
        {"w0": (8, 6), "b0": (8,), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "transposed constant": Case(
        f"{TOKENS} {{ t = Transpose<perm = [1, 0]>(w0) u = Cast<to = 1>(t) a = MatMul(x, u) y ="
        " MatMul(a, w1) }",
        {"w0": (8, 6), "w1": (8, 4)},
        [("neuron", 8)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_removal_is_masking(case: Case) -> None:
    check(case)


def test_a_product_of_activations_pins_what_it_sums_over() -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w0) t = Transpose<perm = [0, 2, 1]>(a) y = MatMul(a, t) }}"
    assert "multiplies two activations" in pinned(text, {"w0": (6, 8)})


def test_an_equation_that_is_not_followed() -> None:
    text = f'{TOKENS} {{ a = MatMul(x, w0) y = Einsum<equation = "...k, kn -> ...n">(a, w1) }}'
    assert "an equation that is not followed" in pinned(text, {"w0": (6, 8), "w1": (8, 4)})


def test_a_weight_cut_out_by_a_shape() -> None:
    text = f"""{TOKENS} {{ s = Shape(x) e = Slice(s, two, three) w = Slice(w0, zero, e, zero) a = MatMul(x, w)
        y = MatMul(a, w1) }}"""
    weights = {"w0": (9, 8), "w1": (8, 4), "zero": [0], "two": [2], "three": [3]}
    check(Case(text, weights, [("neuron", 8)]))


def test_equal_numbers_hold_no_columns() -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w0) ones = Expand(one, to) y = MatMul(a, ones) }}"
    weights = {"w0": (6, 8), "one": np.ones(1, np.float32), "to": [8, 4]}
    assert "multiplies two activations" in pinned(text, weights)
