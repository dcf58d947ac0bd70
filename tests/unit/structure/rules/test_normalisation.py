"""Normalisations: what they join, what they pin, and that removal equals masking."""

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
    check,
    pinned,
)

CASES: dict[str, Case] = {
    "instance": Case(
        f"{IMAGE} {{ {CONV} b = InstanceNormalization(a, g, h) y = Conv(b, w9) }}",
        FIRST | LAST | {"g": (8,), "h": (8,)},
        [("channel", 8)],
    ),
    "groups, opset 18": Case(
        f"{IMAGE} {{ {CONV} b = GroupNormalization<num_groups = 4>(a, g, h) y = Conv(b, w9) }}",
        FIRST | LAST | {"g": (4,), "h": (4,)},
        [("channel", 4)],
        18,
    ),
    "groups, opset 21": Case(
        f"{IMAGE} {{ {CONV} b = GroupNormalization<num_groups = 4>(a, g, h) y = Conv(b, w9) }}",
        FIRST | LAST | {"g": (8,), "h": (8,)},
        [("channel", 4)],
        21,
    ),
    "groups, decomposed": Case(
        f"{IMAGE} {{ {CONV} r = Reshape(a, to) n = InstanceNormalization(r, g, h) s = Shape(a)"
        " b = Reshape(n, s) c = Mul(b, k) y = Conv(c, w9) }",
        FIRST | LAST | {"to": [0, 4, -1], "g": (4,), "h": (4,), "k": (8, 1, 1)},
        [("channel", 4)],
    ),
    "mean square": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) b = SimplifiedLayerNormalization<axis = -1, epsilon = 0.4>(a, s)"
        " y = MatMul(b, w1) }",
        {"w0": (6, 8), "w1": (8, 4), "s": (8,)},
        [("neuron", 8)],
    ),
    "mean square, opset 23": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) b = RMSNormalization<axis = -1, epsilon = 0.4>(a, s)"
        " y = MatMul(b, w1) }",
        {"w0": (6, 8), "w1": (8, 4), "s": (8,)},
        [("neuron", 8)],
        23,
    ),
    "mean square of a sum that goes on": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) c = MatMul(x, w2)"
        " b, u, v, t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.4>(a, c, s, b0)"
        " d = MatMul(b, w3) e = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.4>(t, d, s2)"
        " y = MatMul(e, w1) }",
        {"w0": (6, 8), "w1": (8, 4), "w2": (6, 8), "w3": (8, 8), "b0": (8,), "s": (8,), "s2": (8,)},
        [("width", 8)],
    ),
    "mean square over all heads": Case(
        f"{TOKENS} {{ a = MatMul(x, w0) n = SimplifiedLayerNormalization<axis = -1, epsilon = 0.4>(a, s)"
        " q = Reshape(n, to) t = Transpose<perm = [0, 2, 1, 3]>(q) k = Transpose<perm = [0, 2, 3, 1]>(q)"
        " p = MatMul(t, k) f = Softmax(p) o = MatMul(f, t) r = Transpose<perm = [0, 2, 1, 3]>(o)"
        " z = Reshape(r, back) y = MatMul(z, w1) }",
        {"w0": (6, 12), "w1": (12, 4), "s": (12,), "to": [0, 0, 3, 4], "back": [0, 0, -1]},
        [("head", 3)],
    ),
    "softmax over positions": Case(
        f"{IMAGE} {{ {CONV} b = Softmax<axis = 2>(a) y = Conv(b, w9) }}", FIRST | LAST, [("channel", 8)]
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_removal_is_masking(case: Case) -> None:
    check(case)


NORMALISED = {
    "Softmax": "b = Softmax<axis = -1>(a)",
    "LogSoftmax": "b = LogSoftmax<axis = 2>(a)",
    "LayerNormalization": "b = LayerNormalization<axis = -1>(a, s)",
    "SimplifiedLayerNormalization of a shared scale": "c = SimplifiedLayerNormalization<axis = -1>(a, s)"
    " b = Add(c, s)",
    "SimplifiedLayerNormalization of a computed scale": "t = Exp(s) b = SimplifiedLayerNormalization(a, t)",
    "SimplifiedLayerNormalization whose statistics are read": "c, d ="
    " SimplifiedLayerNormalization<axis = -1>(a, s) b = Mul(c, d)",
    "SkipSimplifiedLayerNormalization": "q = Sigmoid(a)"
    " b = com.microsoft.SkipSimplifiedLayerNormalization(a, q, s)",
    "SkipLayerNormalization": "b = com.microsoft.SkipLayerNormalization(a, r, s)",
    "LpNormalization": "b = LpNormalization<axis = -1>(a)",
    "CumSum": "b = CumSum(a, two)",
}


@pytest.mark.parametrize("step", NORMALISED.values(), ids=NORMALISED)
def test_a_normalised_axis_is_pinned(step: str) -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w0) r = Relu(a) {step} y = MatMul(b, w1) }}"
    why = pinned(text, {"w0": (6, 8), "w1": (8, 4), "s": (8,), "two": np.array(2)})
    assert "normalised over by" in why or "works along it" in why


def test_neighbouring_channels() -> None:
    text = f"{IMAGE} {{ {CONV} b = LRN<size = 3>(a) y = Conv(b, w9) }}"
    assert "normalised over by LRN(b)" in pinned(text, FIRST | LAST)


def test_one_group_of_channels_is_all_of_them() -> None:
    text = f"{IMAGE} {{ {CONV} b = GroupNormalization<num_groups = 1>(a, g, h) y = Conv(b, w9) }}"
    assert "normalised over" in pinned(text, FIRST | LAST | {"g": (8,), "h": (8,)}, 21)


def test_softmax_of_old_opsets_takes_all_axes_behind() -> None:
    text = f"{IMAGE} {{ {CONV} b = Softmax<axis = 1>(a) y = Conv(b, w9) }}"
    assert "normalised over" in pinned(text, FIRST | LAST, 11)


@pytest.mark.parametrize("op", ["Softmax", "Hardmax"])
def test_before_opset_13_all_axes_from_one_on(op: str) -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w0) b = {op}(a) y = MatMul(b, w9) }}"
    assert f"normalised over by {op}(b)" in pinned(text, {"w0": (6, 8), "w9": (8, 4)}, 11)
