"""Sums along units: the weights that are masked too, so that nothing is summed of what goes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.structure.find import find_structure
from onnxprune.structure.masking import mask_units
from tests.unit.structure.graphs import TOKENS, Case, check, graph, pinned

NORM = "n = SimplifiedLayerNormalization<axis = -1, epsilon = 0.3>({}, s)"
W = {"w0": (6, 8), "b0": (8,), "w1": (8, 8), "w2": (8, 4), "s": (8,)}


def test_what_makes_the_units_is_masked_too() -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w0) b = Add(a, b0) c = Relu(b) {NORM.format('c')} y = MatMul(n, w2) }}"
    structure = check(Case(text, W, [("neuron", 8)]))
    (group,) = structure.groups
    assert {part.tensor: part.zero for part in group.parts} == {
        "w0": True, "b0": True, "s": False, "w2": False,
    }  # fmt: skip
    model, _ = graph(text, W)
    masked = mask_units(model, structure, {group.name: np.arange(8) < 3})
    assert not masked.array("w0")[:, :3].any() and not masked.array("b0")[:3].any()
    assert np.array_equal(masked.array("w0")[:, 3:], model.array("w0")[:, 3:])


def test_only_the_weights_of_groups_with_a_sum_are() -> None:
    text = (
        f"{TOKENS} {{ a = MatMul(x, w0) {NORM.format('a')} h = MatMul(n, w1) r = Relu(h) y = MatMul(r, w2) }}"
    )
    structure = check(Case(text, W, [("neuron", 8), ("neuron", 8)]))
    zero = {part.tensor for group in structure.groups for part in group.parts if part.zero}
    assert zero == {"w0"}


def test_a_stream_with_several_norms() -> None:
    text = (
        f"{TOKENS} {{ a = MatMul(x, w0) {NORM.format('a')} h = MatMul(n, w1) t = Add(a, h)"
        " n2 = SimplifiedLayerNormalization<axis = -1>(t, s2) h2 = MatMul(n2, w3) u = Add(t, h2)"
        " n3 = SimplifiedLayerNormalization<axis = -1>(u, s3) y = MatMul(n3, w2) }"
    )
    structure = check(Case(text, W | {"w3": (8, 8), "s2": (8,), "s3": (8,)}, [("width", 8)]))
    (group,) = structure.groups
    assert [part.tensor for part in group.parts if part.zero] == ["w0", "w1", "w3"]


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ("c = Sigmoid(a)", "Sigmoid(c) does not make zeros of zeros"),
        ("d = Exp(a) c = Relu(d)", "Exp(d) does not make zeros of zeros"),
        ("d = Sigmoid(a) c = Add(a, d)", "Sigmoid(d) does not make zeros of zeros"),
    ],
)
def test_a_unit_that_is_never_zero_stays(steps: str, why: str) -> None:
    found = pinned(f"{TOKENS} {{ a = MatMul(x, w0) {steps} {NORM.format('c')} y = MatMul(n, w2) }}", W)
    assert f"normalised over by SimplifiedLayerNormalization(n), and {why}" in found


def test_a_group_that_is_pinned_elsewhere_keeps_that_reason() -> None:
    text = f"{TOKENS} {{ a = Softmax<axis = -1>(x) b = MatMul(a, w0) c = Softmax<axis = -1>(b)"
    model, feeds = graph(f"{text} {NORM.format('b')} d = Add(n, c) y = MatMul(d, w2) }}", W)
    structure = find_structure(model, feeds, 1)
    assert not structure.groups
    assert "normalised over by Softmax(c)" in "; ".join(item.reason for item in structure.pinned)
