"""Pooling, reductions and Resize: what they join, what they pin, and that removal equals masking."""

from __future__ import annotations

import numpy as np
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
    "over positions": Case(
        f"{IMAGE} {{ {CONV} m = ReduceMean<axes = [2, 3]>(a) b = Sub(a, m) y = Conv(b, w9) }}",
        FIRST | LAST,
        [("channel", 8)],
    ),
    "pooled and squeezed": Case(
        "(float[N, 3, H, W] x) => (float[N, C] y) { a = Conv(x, w0, b0) p = GlobalAveragePool(a)"
        " q = Squeeze(p, at) y = Gemm(q, w1) }",
        FIRST | {"w1": (8, 4), "at": [2, 3]},
        [("channel", 8)],
    ),
    "resized by scales": Case(
        f"{IMAGE} {{ {CONV} b = Resize(a, , scales) y = Conv(b, w9) }}",
        FIRST | LAST | {"scales": np.array([1, 1, 2, 1.5], np.float32)},
        [("channel", 8)],
    ),
    "resized to sizes": Case(
        "(float[2, 3, 6, 7] x) => (float[N, C, P, Q] y) { a = Conv(x, w0, b0) b = Resize(a, , , sizes)"
        " y = Conv(b, w9) }",
        FIRST | LAST | {"sizes": [2, 8, 9, 9]},
        [("channel", 8)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_removal_is_masking(case: Case) -> None:
    check(case)


TAKEN = {
    "mean": "r = ReduceMean<axes = [1]>(a) y = Mul(a, r)",
    "all axes": "r = ReduceMax(a) b = Div(a, r) y = Conv(b, w9)",
    "ArgMax": "i = ArgMax<axis = 1, keepdims = 1>(a) f = Cast<to = 1>(i) y = Mul(a, f)",
    "TopK": "t, i = TopK<axis = 1>(a, k) y = Conv(t, w5)",
}


@pytest.mark.parametrize("rest", TAKEN.values(), ids=TAKEN)
def test_an_axis_that_is_used_up_is_pinned(rest: str) -> None:
    why = pinned(f"{IMAGE} {{ {CONV} {rest} }}", FIRST | LAST | {"k": [5], "w5": (4, 5, 1, 1)})
    assert "summed up by" in why or "chooses on it" in why or "graph output" in why
