"""Sizes that are used as numbers keep their axes; sizes that say a shape again do not."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.structure.find import find_structure
from tests.unit.structure.graphs import graph, pinned, summary

HEAD = "(float[N, 5, 6] x) => (float[N, P, C] y) { a = MatMul(x, w0) s = Shape(a)"
WEIGHTS = {"w0": (6, 8), "w1": (8, 4)}
NUMBERS = {
    "average": ("n = Gather(s, last) f = Cast<to = 1>(n) b = Div(a, f)", "Cast(f)", {"last": [2]}),
    "count": ("n = Size(a) f = Cast<to = 1>(n) b = Div(a, f)", "Cast(f)", {}),
    "behind arithmetic": (
        "t = Slice(s, one, three) n, m = Split<axis = 0>(t) k = Mul(m, n) r = Concat<axis = 0>(k, one)"
        " q = ReduceMax(r) f = Cast<to = 1>(q) b = Div(a, f)",
        "Cast(f)",
        {"one": [1], "three": [3]},
    ),
    "positions": (
        "n = Gather(s, last) r = Range(zero, n, one) f = Cast<to = 1>(r) m = ReduceMax(f) b = Mul(a, m)",
        "Cast(f)",
        {"last": np.int64(2), "zero": np.int64(0), "one": np.int64(1)},
    ),
    "index": (
        "n = Gather(s, last) m = Sub(n, one) t = Gather(table, m) b = Mul(a, t)",
        "Gather(t)",
        {"last": [2], "one": [1], "table": (9,)},
    ),
}


@pytest.mark.parametrize("case", NUMBERS.values(), ids=NUMBERS)
def test_a_size_that_is_a_number(case: tuple[str, str, dict[str, object]]) -> None:
    nodes, reader, more = case
    why = pinned(f"{HEAD} {nodes} y = MatMul(b, w1) }}", WEIGHTS | more)
    assert f"{reader} computes with its size" in why


def test_other_sizes_are_free() -> None:
    model, feeds = graph(
        f"{HEAD} n = Gather(s, one) f = Cast<to = 1>(n) b = Div(a, f) y = MatMul(b, w1) }}",
        WEIGHTS | {"one": [1]},
    )
    assert summary(find_structure(model, feeds)) == [("neuron", 8)]


def test_a_size_that_is_an_output() -> None:
    text = (
        "(float[N, 6] x) => (float[N, C] y, int64[2] s) { a = MatMul(x, w0) s = Shape(a) y = MatMul(a, w1) }"
    )
    assert "its size reaches the graph output 's'" in pinned(text, WEIGHTS)
