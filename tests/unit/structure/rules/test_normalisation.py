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
    "SimplifiedLayerNormalization": "b = SimplifiedLayerNormalization<axis = -1>(a, s)",
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
