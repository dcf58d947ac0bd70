"""Reshape and its kin: what they join, what they pin, and that removal equals masking."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.structure.graphs import (
    CONV,
    FIRST,
    IMAGE,
    LAST,
    TOKENS,
    Case,
    assert_removal_is_masking,
    check,
    graph,
    reasons,
)

CASES: dict[str, Case] = {
    "flatten": Case(
        "(float[N, 3, 6, 7] x) => (float[N, C] y) { a = Conv(x, w0, b0) b = Flatten(a) y = Gemm(b, w1) }",
        FIRST | {"w1": (160, 4)},
        [("channel", 8)],
    ),
    "reshape to a constant": Case(
        "(float[N, 3, 6, 7] x) => (float[N, C] y) { a = Conv(x, w0, b0) b = Reshape(a, to) y = Gemm(b, w1) }",
        FIRST | {"w1": (160, 4), "to": [-1, 160]},
        [("channel", 8)],
    ),
    "reshape as a graph computes it": Case(
        f"{IMAGE} {{ {CONV} s = Shape(a) n = Gather(s, i) c = Unsqueeze(n, j) p = Mul(u, v)"
        " t = Concat<axis = 0>(c, eight, p) b = Reshape(a, t) d = Transpose<perm = [0, 2, 1]>(b)"
        " e = MatMul(d, w1) z = Unsqueeze(e, k) q = Unsqueeze(z, k) y = Squeeze(q, k) }",
        FIRST | {"i": np.array(0), "j": [0], "eight": [8], "u": [4], "v": [5], "w1": (8, 4), "k": [1]},
        [("channel", 8)],
    ),
    "shape of another value": Case(
        "(float[N, 6, 8] x) => (float[N, C, D] y) { s = Shape(x) a = MatMul(x, w0) b = Reshape(a, s)"
        " y = MatMul(b, w1) }",
        {"w0": (8, 8), "w1": (8, 4)},
        [("neuron", 8)],
    ),
    "squeeze and excite": Case(
        f"{IMAGE} {{ {CONV} p = ReduceMean<axes = [2, 3]>(a) q = Conv(p, w1) r = Relu(q) s = Conv(r, w2)"
        " t = HardSigmoid(s) b = Mul(a, t) y = Conv(b, w9) }",
        FIRST | LAST | {"w1": (4, 8, 1, 1), "w2": (8, 4, 1, 1)},
        [("channel", 4), ("channel", 8)],
    ),
    "channel shuffle": Case(
        f"{IMAGE} {{ {CONV} r = Reshape(a, to) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) b = Reshape(t, back)"
        " c = Conv<group = 2>(b, w1) y = Conv(c, w9) }",
        FIRST | {"to": [0, 2, 4, 4, 5], "back": [0, 8, 4, 5], "w1": (6, 4, 1, 1), "w9": (5, 6, 1, 1)},
        [("channel", 2), ("channel", 3)],
    ),
    "pixels from channels": Case(
        f"{IMAGE} {{ {CONV} b = DepthToSpace<blocksize = 2>(a) y = Conv(b, w9) }}",
        FIRST | {"w9": (5, 2, 1, 1)},
        [("channel", 2)],
    ),
    "pixels from channels, CRD": Case(
        f'{IMAGE} {{ {CONV} b = DepthToSpace<blocksize = 2, mode = "CRD">(a) y = Conv(b, w9) }}',
        FIRST | {"w9": (5, 2, 1, 1)},
        [("channel", 2)],
    ),
    "channels from pixels": Case(
        "(float[N, 3, 6, 6] x) => (float[N, C, P, Q] y) { a = Conv(x, w0, b0)"
        " b = SpaceToDepth<blocksize = 2>(a)"
        " y = Conv(b, w9) }",
        FIRST | {"w9": (5, 32, 1, 1)},
        [("channel", 8)],
    ),
    "tiled": Case(
        f"{IMAGE} {{ {CONV} b = Tile(a, times) y = Conv(b, w9) }}",
        FIRST | {"times": [1, 2, 1, 1], "w9": (5, 16, 1, 1)},
        [("channel", 8)],
    ),
    "expanded": Case(
        f"{TOKENS} {{ a = MatMul(v, w0) b = Expand(a, to) c = MatMul(x, w1) d = Add(b, c) y ="
        " MatMul(d, w2) }",
        {"v": (1, 6), "w0": (6, 8), "w1": (6, 8), "w2": (8, 4), "to": [2, 5, 8]},
        [("neuron", 8)],
    ),
    "zeros of a shape": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) z = ConstantOfShape(to) b = Max(a, z) y = MatMul(b, w2) }}",
        {"w0": (6, 8), "w2": (8, 4), "to": [5, 8]},
        [("neuron", 8)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_removal_is_masking(case: Case) -> None:
    check(case)


def test_two_axes_that_both_could_shrink_and_are_merged() -> None:
    text = """(float[N, 3, 5] x) => (float[N, C] y) { a = MatMul(w0, x) b = MatMul(a, w1) c = Relu(b)
        d = Reshape(c, to) y = MatMul(d, w2) }"""
    model, feeds = graph(text, {"w0": (4, 3), "w1": (5, 6), "to": [0, 24], "w2": (24, 3)})
    structure = assert_removal_is_masking(model, feeds)
    assert len(structure.groups) == 1 and "merged with another axis" in reasons(structure)
