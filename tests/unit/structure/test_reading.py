"""Groups are named, and told apart by where their units lie."""

from __future__ import annotations

from onnxprune.structure.find import find_groups
from tests.unit.structure.graphs import graph


def test_names_are_different() -> None:
    text = """(float[N, L, 6] x) => (float[N, L, C] y) { a = MatMul(x, w0) b, c = Split<axis = -1>(a, parts)
        d = MatMul(b, w1) e = MatMul(c, w2) y = Add(d, e) }"""
    model, feeds = graph(text, {"w0": (6, 8), "parts": [3, 5], "w1": (3, 4), "w2": (5, 4)})
    groups, others = find_groups(model, feeds)
    assert [group.name for group in groups] == ["MatMul(a)", "MatMul(a):2"]
    assert {item.size for item in others} == {6, 4}


def test_what_no_weight_makes_or_reads_is_pinned() -> None:
    text = """(float[N, L, 6] x) => (float[N, L, C] y) { s = Mul(x, g) a = MatMul(s, w0) b = Relu(a)
        c = ReduceMax<axes = [2]>(b) y = MatMul(b, w1) }"""
    model, feeds = graph(text, {"w0": (6, 1), "w1": (1, 4), "g": (6,)})
    groups, others = find_groups(model, feeds)
    assert not groups and {item.reason for item in others} == {
        "it is a dimension of the graph input 'x'", "it reaches the graph output 'y'",
    }  # fmt: skip
