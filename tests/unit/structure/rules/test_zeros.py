"""What each operator needs to make zeros: every form in front of a sum along the units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unit.structure.graphs import CONV, FIRST, IMAGE, LAST, TOKENS, Case, check, pinned

NORM = "n = SimplifiedLayerNormalization<axis = -1, epsilon = 0.3>(c, s) y = MatMul(n, w9)"
W: dict[str, Any] = {"w0": (6, 8), "w9": (8, 4), "s": (8,), "b0": (8,), "zero": np.float32(0)}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "decomposed SiLU": ("a = MatMul(x, w0) g = Sigmoid(a) c = Mul(g, a)", {}),
    "scaled, moved, clipped": (
        "a = MatMul(x, w0) m = Mul(a, b0) d = Div(m, k) l = Clip(d, zero, six) c = Max(l, zero)",
        {"k": (8,), "six": np.float32(6)},
    ),
    "power and difference": ("a = MatMul(x, w0) p = Pow(a, k) c = Sub(p, b0)", {"k": np.float32(3)}),
    "split and put together": (
        "a = MatMul(x, w0) f, g = Split<axis = -1>(a, at) h = Neg(g) c = Concat<axis = -1>(f, h)",
        {"at": [4, 4]},
    ),
    "turned and padded": (
        "a = MatMul(x, w0) t = Transpose<perm = [0, 2, 1]>(a) p = Pad(t, by) l = Slice(p, at, to, axes)"
        " c = Transpose<perm = [0, 2, 1]>(l)",
        {"by": [0, 0, 1, 0, 0, 1], "at": [1], "to": [6], "axes": [2]},
    ),
    "normalised before": (
        "a = MatMul(x, w0) c = SimplifiedLayerNormalization<axis = -1>(a, s2)",
        {"s2": (8,)},
    ),
    "einsum": ('c = Einsum<equation = "nlk,ck->nlc">(x, w3)', {"w3": (8, 6)}),
}


@pytest.mark.parametrize(("steps", "more"), FORMS.values(), ids=FORMS)
def test_zeros_reach_the_sum(steps: str, more: dict[str, Any]) -> None:
    groups = check(Case(f"{TOKENS} {{ {steps} {NORM} }}", W | more, [("neuron", 8)])).groups
    assert any(part.zero for group in groups for part in group.parts)


L2 = "q = ReduceL2<axes = [1]>(c) d = Div(c, q) y = Conv(d, w9)"
IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "convolution": (f"{CONV} c = Relu(a)", {}),
    "grouped": (f"{CONV} c = Conv<group = 8>(a, w1, b1)", {"w1": (8, 1, 3, 3), "b1": (8,)}),
    "transposed": ("a = Conv(x, w1) c = ConvTranspose(a, w0, b0)", {"w1": (4, 3, 1, 1), "w0": (4, 8, 3, 3)}),
    "batch normalisation": (
        f"{CONV} c = BatchNormalization(a, g, h, mean, var)",
        {"g": (8,), "h": (8,), "mean": (8,), "var": (8,)},
    ),
    "pooled": (f"{CONV} p = MaxPool<kernel_shape = [2, 2]>(a) c = AveragePool<kernel_shape = [2, 2]>(p)", {}),
}


@pytest.mark.parametrize(("steps", "more"), IMAGES.values(), ids=IMAGES)
def test_channels(steps: str, more: dict[str, Any]) -> None:
    found = check(Case(f"{IMAGE} {{ {steps} {L2} }}", FIRST | LAST | more, MADE.get(steps, [("channel", 8)])))
    assert any(part.zero for group in found.groups for part in group.parts)


MADE = {IMAGES["transposed"][0]: [("channel", 4), ("channel", 8)]}


def test_global_response_normalisation() -> None:
    """ConvNeXt V2: norms of the channels over their mean; epsilon counts here."""
    text = (
        f"{IMAGE} {{ {CONV} c = Relu(a) g = ReduceL2<axes = [2, 3]>(c) m = ReduceMean<axes = [1]>(g)"
        " e = Add(m, eps) r = Div(g, e) z = Mul(c, r) k = Mul(z, gamma) t = Add(k, beta) u = Add(t, c)"
        " y = Conv(u, w9) }"
    )
    weights = FIRST | LAST | {"gamma": (8, 1, 1), "beta": (8, 1, 1), "eps": np.float32(2)}
    check(Case(text, weights, [("channel", 8)]))


def test_gemm_with_its_bias() -> None:
    text = f"(float[N, 6] x) => (float[N, C] y) {{ c = Gemm<transB = 1>(x, w3, b0) {NORM} }}"
    (group,) = check(Case(text, W | {"w3": (8, 6)}, [("neuron", 8)])).groups
    assert {part.tensor for part in group.parts if part.zero} == {"w3", "b0"}


LOUD: dict[str, tuple[str, dict[str, Any]]] = {
    "a number added to all": ("a = MatMul(x, w0) c = Add(a, one)", {"one": np.float32(1)}),
    "bounds without zero": ("a = MatMul(x, w0) c = Clip(a, one)", {"one": np.float32(1)}),
    "a negative power": ("a = MatMul(x, w0) b = Abs(a) c = Pow(b, k)", {"k": np.float32(-1)}),
    "padded with ones": (
        "a = MatMul(x, w0) t = Transpose<perm = [0, 2, 1]>(a) p = Pad(t, by, one)"
        " c = Transpose<perm = [0, 2, 1]>(p)",
        {"by": [0, 0, 1, 0, 0, 1], "one": np.float32(1)},
    ),
    "below the line": ("a = MatMul(x, w0) c = Div(one, a)", {"one": np.float32(1)}),
}


@pytest.mark.parametrize(("steps", "more"), LOUD.values(), ids=LOUD)
def test_what_makes_more_than_zeros(steps: str, more: dict[str, Any]) -> None:
    assert "does not make zeros of zeros" in pinned(f"{TOKENS} {{ {steps} {NORM} }}", W | more)
