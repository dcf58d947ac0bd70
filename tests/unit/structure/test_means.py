"""Means over fewer units: what makes up for them, and what cannot."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.structure.find import find_structure
from onnxprune.structure.means import MeanError, made_up_for, scaled
from onnxprune.structure.removal import remove_units
from tests.unit.structure.graphs import TOKENS, Case, check, graph, pinned, reasons

A = f"{TOKENS} {{ a = MatMul(x, w0)"
SQUARE = f"{A} q = Mul(a, a) m = ReduceMean<axes = [-1]>(q)"
W = {"w0": (6, 8), "w1": (8, 4), "s": (8,), "eps": np.float32(0.5)}  # so large that its digits count
FORMS = {
    "root and quotient": "e = Add(m, eps) r = Sqrt(e) d = Div(a, r) n = Mul(s, d)",
    "reciprocal": "e = Add(eps, m) r = Sqrt(e) i = Reciprocal(r) d = Mul(a, i) n = Mul(d, s)",
    "power": "e = Add(m, eps) i = Pow(e, k) d = Mul(a, i) n = Mul(d, s)",
    "epsilon behind the root": "r = Sqrt(m) e = Add(r, eps) d = Div(a, e) n = Mul(d, s)",
    "at least epsilon": "r = Sqrt(m) e = Max(r, eps) d = Div(a, e) n = Mul(d, s)",
    "types": "c = Cast<to = 11>(m) z = Cast<to = 11>(eps) e = Add(c, z) r = Sqrt(e) f = Cast<to = 1>(r)"
    " d = Div(a, f) n = Mul(d, s)",
    "scale over root": "e = Add(m, eps) r = Sqrt(e) d = Div(s, r) n = Mul(a, d)",
    "root over scale": "e = Add(m, eps) r = Sqrt(e) d = Div(r, s) n = Mul(a, d)",
    "no scale": "e = Add(m, eps) r = Sqrt(e) n = Div(a, r)",
    "through what is homogeneous": "e = Add(m, eps) r = Sqrt(e) d = Div(a, r) n = LeakyRelu(d)",
    "scale before the root": "e = Add(m, eps) r = Sqrt(e) i = Reciprocal(r) d = Mul(s, a) n = Mul(d, i)",
    "scale of another shape": "e = Add(m, eps) r = Sqrt(e) d = Div(a, r) u = Unsqueeze(s, at) n = Mul(d, u)",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_removal_is_masking(form: str) -> None:
    weights = {**W, "k": np.float32(-0.5), "at": [0]}
    check(Case(f"{SQUARE} {form} y = MatMul(n, w1) }}", weights, [("neuron", 8)]))


def test_scale_and_epsilon_by_hand() -> None:
    model, feeds = graph(f"{SQUARE} {FORMS['root and quotient']} y = MatMul(n, w1) }}", W)
    structure = find_structure(model, feeds)
    smaller = remove_units(model, structure, {structure.groups[0].name: np.arange(8) >= 2})
    assert smaller.array("eps") == pytest.approx(0.5 * 8 / 2)
    assert smaller.array("s") == pytest.approx(model.array("s")[:2] * 2)
    assert np.array_equal(smaller.array("w1"), model.array("w1")[:2])


def test_an_epsilon_that_others_read_stays_for_them() -> None:
    text = (
        f"{SQUARE} {FORMS['root and quotient']} b = MatMul(n, w2) q2 = Mul(b, b)"
        " m2 = ReduceMean<axes = [-1]>(q2) e2 = Add(m2, eps) r2 = Sqrt(e2) d2 = Div(b, r2)"
        " n2 = Mul(d2, s2) y = MatMul(n2, w1) }"
    )
    weights = {**W, "w2": (8, 6), "w1": (6, 4), "s2": (6,)}
    structure = check(Case(text, weights, [("neuron", 6), ("neuron", 8)]))
    model, _ = graph(text, weights)
    first = next(group for group in structure.groups if group.units == 8)
    smaller = remove_units(model, structure, {first.name: np.arange(8) < 4})
    own = {smaller.array(node.input[1]).item() for node in smaller.graph.node if node.op_type == "Add"}
    assert own == {0.5, 1.0}


REFUSED = {
    "Sub(d) reads it": "d = Sub(a, m) n = Mul(d, s)",
    "Sqrt(r) reads it": "r = Sqrt(m) v = Mul(r, m) d = Div(a, v) n = Mul(d, s)",
    "its weight 's' has other readers": "r = Sqrt(m) d = Div(a, r) e = Mul(d, s) n = Add(e, s)",
    "Tanh(n) reads it": "r = Sqrt(m) d = Div(a, r) n = Tanh(d)",
    "the exponent 's' is not one number": "r = Pow(m, s) n = Mul(a, r)",
}


@pytest.mark.parametrize(("why", "form"), REFUSED.items(), ids=REFUSED)
def test_refusals_say_why(why: str, form: str) -> None:
    assert why in pinned(f"{SQUARE} {form} y = MatMul(n, w1) }}", W)


def test_all_matrices_behind_a_norm_without_scale() -> None:
    text = (
        f"{SQUARE} e = Add(m, eps) r = Sqrt(e) n = Div(a, r) b = MatMul(n, w2) c = MatMul(n, w1) d = Relu(b)"
        " f = MatMul(d, w3) y = Add(c, f) }"
    )
    weights = {**W, "w2": (8, 6), "w3": (6, 4)}
    structure = check(Case(text, weights, [("neuron", 6), ("neuron", 8)]))
    model, feeds = graph(
        text.replace("y = Add(c, f)", "g = Add(c, f) z = ReduceMax(n) y = Add(g, z)"), weights
    )
    assert "ReduceMax(z) reads it" in reasons(find_structure(model, feeds))
    assert len(structure.groups) == 2


def test_a_long_way_is_given_up() -> None:
    steps = " ".join(f"i{k + 1} = Identity(i{k})" for k in range(30)).replace("(i0)", "(m)")
    model, _ = graph(f"{SQUARE} {steps} d = Div(a, i30) n = Mul(d, s) y = MatMul(n, w1) }}", W)
    with pytest.raises(MeanError, match="no weight follows it"):
        made_up_for(model, "m")


def test_what_callers_may_give_is_not_scaled() -> None:
    text = "(float[N, L, 6] x, float[8] s) => (float[N, L, C] y) { a = MatMul(x, w0) n = Mul(a, s)"
    model, _ = graph(f"{text} y = MatMul(n, w1) }}", W)
    with pytest.raises(MeanError, match="callers may give another"):
        scaled(model, 1, 1, 0.5)
