"""Which axis of a Reshape carries the removal."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.structure.find import find_structure
from tests.unit.structure.graphs import CONV, FIRST, IMAGE, TOKENS, graph, summary

HEADS = """q = MatMul(x, w) r = Reshape(q, to) t = Transpose<perm = [0, 2, 1, 3]>(r)
    k = Transpose<perm = [0, 2, 3, 1]>(r)"""
WEIGHTS = {"w": (6, 12), "to": [0, 0, 2, 6], "back": [0, 0, 12], "wo": (12, 4)}
CASES = {
    "batch of a product": f"{HEADS} s = MatMul(t, k) p = Softmax(s) o = MatMul(p, t)",
    "through arithmetic": f"{HEADS} n = Neg(t) e = Erf(n) s = MatMul(e, k) p = Softmax(s) o = MatMul(p, n)",
    "batch and heads on one axis": f"""{HEADS} t3 = Reshape(t, three) k3 = Reshape(k, kthree)
        s3 = MatMul(t3, k3) p = Softmax(s3) o3 = MatMul(p, t3) o = Reshape(o3, four)""",
}


@pytest.mark.parametrize("body", CASES.values(), ids=CASES)
def test_heads(body: str) -> None:
    text = (
        f"{TOKENS} {{ {body} u = Transpose<perm = [0, 2, 1, 3]>(o) c = Reshape(u, back) y = MatMul(c, wo) }}"
    )
    more = {"three": [-1, 5, 6], "kthree": [-1, 6, 5], "four": [-1, 2, 5, 6]}
    weights = WEIGHTS | {name: value for name, value in more.items() if f" {name})" in text}
    assert summary(find_structure(*graph(text, weights))) == [("head", 2)]


def test_the_longer_axis_when_nothing_speaks_for_either() -> None:
    text = f"{IMAGE} {{ {CONV} r = Reshape(a, to) e = Relu(r) b = Reshape(e, back) y = Conv(b, w9) }}"
    for to, units in (([0, 2, 4, 4, 5], 4), ([0, 4, 2, 4, 5], 4)):
        model, feeds = graph(text, FIRST | {"to": to, "back": [0, 8, 4, 5], "w9": (5, 8, 1, 1)})
        assert summary(find_structure(model, feeds)) == [("channel", units)]


def test_an_axis_that_is_normalised_is_not_taken() -> None:
    text = f"""{IMAGE} {{ {CONV} r = Reshape(a, to) e = Softmax<axis = 2>(r) b = Reshape(e, back)
        y = Conv(b, w9) }}"""
    model, feeds = graph(text, FIRST | {"to": [0, 2, 4, 4, 5], "back": [0, 8, 4, 5], "w9": (5, 8, 1, 1)})
    assert summary(find_structure(model, feeds)) == [("channel", 2)]


def test_an_axis_that_is_resized_is_not_taken() -> None:
    text = """(float[N, 6] x) => (float[N, C, P, Q] y) { a = MatMul(x, w) r = Reshape(a, to) d = Relu(r)
        e = Resize(d, , scales) y = Conv(e, w9) }"""
    weights = {"w": (6, 96), "to": [0, 4, 2, 12], "w9": (5, 4, 1, 1)}
    model, feeds = graph(text, weights | {"scales": np.array([1, 1, 2, 2], np.float32)})
    assert summary(find_structure(model, feeds)) == [("neuron", 4)]
