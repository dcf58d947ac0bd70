"""Normalisations that add first, without one of the two terms."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.inmemory import session_of
from onnxprune.model import Model
from onnxprune.slim.branches import bypass, find_branches
from onnxprune.slim.fused import is_fused
from onnxprune.slim.trial import failing_branches
from onnxprune.structure.sample import sample
from tests.unit.structure.graphs import graph

W = {"w1": (6, 8), "w2": (8, 6), "w3": (6, 9), "w4": (9, 6), "g": (6,), "h": (6,), "b": (6,), "k": (6,)}
# Layer normalisation behind the sum: what goes on is the norm
BEHIND = """(float[N, L, 6] x) => (float[N, L, 6] y) {
    a1 = MatMul(x, w1) a2 = Relu(a1) a = MatMul(a2, w2)
    s = com.microsoft.SkipLayerNormalization<epsilon = 0.5>(a, x, g, h, b)
    c1 = MatMul(s, w3) c2 = Relu(c1) c = MatMul(c2, w4)
    t = com.microsoft.SkipLayerNormalization<epsilon = 0.5>(s, c, k)
    y = Neg(t) }"""
# In front of the next branch: what goes on is the sum
FRONT = """(float[N, L, 6] x) => (float[N, L, 6] y) {
    a1 = MatMul(x, w1) a2 = Relu(a1) a = MatMul(a2, w2)
    n, m1, i1, s = com.microsoft.OP<epsilon = 0.5>(x, a, WEIGHTS)
    c1 = MatMul(n, w3) c2 = Relu(c1) c = MatMul(c2, w4)
    t, m2, i2, u = com.microsoft.OP<epsilon = 0.5>(s, c, g)
    y = Add(t, u) }""".replace("n, m1, i1, s", "n, , , s").replace("t, m2, i2, u", "t, , , u")
FORMS = {
    "behind": BEHIND,
    "in front, with bias": FRONT.replace("OP", "SkipLayerNormalization").replace("WEIGHTS", "g, h, b"),
    "in front, without": FRONT.replace("OP", "SkipLayerNormalization").replace("WEIGHTS", "g, h"),
    "simplified, with bias": FRONT.replace("OP", "SkipSimplifiedLayerNormalization").replace(
        "WEIGHTS", "g, b"
    ),
    "simplified": FRONT.replace("OP", "SkipSimplifiedLayerNormalization").replace("WEIGHTS", "g"),
}


def run(model: Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(session_of(model, threads=1, optimize=False).run(None, feeds)[0])


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_removal_is_a_closed_gate(text: str) -> None:
    model, feeds = graph(text, W)
    branches = find_branches(model, sample(model, feeds)[0])
    assert [branch.value for branch in branches] == ["a", "c"]
    for chosen in (branches, branches[:1], branches[1:]):
        assert failing_branches(model, chosen, [feeds]) == {}
    both = bypass(model, branches)
    assert not {node.op_type for node in both.graph.node} & {"MatMul", "Relu"}
    assert not {"w1", "w2", "w3", "w4"} & both.index.tensors.keys()


def test_by_hand() -> None:
    model, feeds = graph(FORMS["in front, with bias"], W)
    branches = find_branches(model, sample(model, feeds)[0])
    x = feeds["x"] + model.array("b")

    def norm(z: np.ndarray) -> np.ndarray:
        return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 0.5)

    wanted = norm(x) * model.array("g") + x  # the second norm has no shift
    np.testing.assert_allclose(run(bypass(model, branches), feeds), wanted, rtol=1e-5, atol=1e-5)


def test_a_computed_bias_and_statistics_are_left_alone() -> None:
    text = BEHIND.replace("(a, x, g, h, b)", "(a, x, g, h, e)").replace("a1 =", "e = Exp(b) a1 =", 1)
    model, feeds = graph(text, W)
    assert [is_fused(model, node) for node in model.graph.node if "Skip" in node.op_type] == [False, True]
    assert [branch.value for branch in find_branches(model, sample(model, feeds)[0])] == ["c"]
    model, _ = graph(BEHIND.replace("    t = com", "    t, mean = com"), W)
    assert [is_fused(model, node) for node in model.graph.node if "Skip" in node.op_type] == [True, False]
