"""Sizes that are used as numbers keep their axes; sizes that say a shape again do not."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.structure.find import find_structure
from onnxprune.structure.labels import Labels
from onnxprune.structure.origins import follow
from onnxprune.structure.sample import sample
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


def test_what_a_subgraph_reads() -> None:
    text = f"""{HEAD} n = Size(a) big = Greater(n, many)
        b = If(big) <then_branch = t () => (float[A, B, D] p) {{ p = Neg(a) }},
                    else_branch = e () => (float[A, B, D] q) {{ f = Cast<to = 1>(n) q = Mul(a, f) }}>
        y = MatMul(b, w1) }}"""
    assert "If(b)" in pinned(text, WEIGHTS | {"many": np.int64(9)})


def test_arithmetic_that_does_not_fit() -> None:
    """A Slice whose bounds are no small integers: the sizes stay, and the search goes on."""
    model, feeds = graph(
        f"{HEAD} t = Slice(s, one, two) b = Reshape(a, s) y = MatMul(b, w1) }}",
        WEIGHTS | {"one": [1], "two": [2]},
    )
    found = Labels(model, *sample(model, feeds))
    for node in model.graph.node[:2]:
        follow(found, node)
    found.numbers.pop("s")
    found.sizes.pop("t")
    found.numbers["t"] = np.array([5])
    follow(found, model.graph.node[2])
    assert "t" not in found.origins
