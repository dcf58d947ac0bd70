"""Shapes that a graph computes are right by themselves, or get the elements that are not."""

from __future__ import annotations

import numpy as np

from onnxprune.structure.removal import remove_units
from tests.unit.structure.graphs import CONV, FIRST, IMAGE, LAST, Feeds, assert_removal_is_masking, graph

HEAD = "(float[N, 6, 8] x) => (float[N, C, D] y) { a = MatMul(x, w0)"


def other(feeds: Feeds) -> list[Feeds]:
    return [{name: np.concatenate([array, array]) for name, array in feeds.items()}]


def ops(text: str, weights: dict[str, object]) -> tuple[list[str], list[str]]:
    """Return the operators before and after, having checked that removal equals masking for two sizes."""
    model, feeds = graph(text, weights)
    structure = assert_removal_is_masking(model, feeds, others=other(feeds))
    (group,) = structure.groups
    smaller = remove_units(model, structure, {group.name: np.arange(group.units) == 1})
    return [node.op_type for node in model.graph.node], [node.op_type for node in smaller.graph.node]


def test_what_follows_from_shapes_is_left() -> None:
    before, after = ops(
        f"{HEAD} s = Shape(a) b = Reshape(a, s) y = MatMul(b, w1) }}", {"w0": (8, 8), "w1": (8, 4)}
    )
    assert before == after


def test_the_shape_of_a_value_that_stays() -> None:
    before, after = ops(
        f"{HEAD} s = Shape(x) b = Reshape(a, s) y = MatMul(b, w1) }}", {"w0": (8, 8), "w1": (8, 4)}
    )
    assert after.count("Where") == 1 and len(after) == len(before) + 1


def test_a_number_in_arithmetic() -> None:
    text = f"""{HEAD} s = Shape(x) n = Gather(s, i) m = Mul(n, eight) t = Concat<axis = 0>(m, six)
        r = Transpose<perm = [0, 2, 1]>(a) b = Reshape(r, t) q = Reshape(b, back)
        d = Transpose<perm = [0, 2, 1]>(q) y = MatMul(d, w1) }}"""
    weights = {"w0": (8, 8), "w1": (8, 4), "i": [0], "eight": [8], "six": [6], "back": [-1, 8, 6]}
    assert "Where" in ops(text, weights)[1]


def test_a_constant_that_others_read_too_stays_for_them() -> None:
    text = """(float[N, 6, 8] x) => (float[N, C, D] y, float[N, P, Q] z) { a = MatMul(x, w0)
        b = Reshape(a, to) y = MatMul(b, w1) z = Reshape(x, to) }"""
    model, feeds = graph(text, {"w0": (8, 8), "w1": (8, 4), "to": [0, 6, 8]})
    assert_removal_is_masking(model, feeds)


SIZE = "s = Shape<start = 2, end = 3>(x) g = Greater(s, ten) p = Where(g, two, one)"
NUMBERS = {"ten": [10], "two": [2], "one": [1], "none": [0]}


def at_other_heights(text: str, weights: dict[str, object], *heights: int) -> None:
    model, feeds = graph(text, weights)
    rng = np.random.default_rng(0)
    others = [{"x": rng.normal(size=(2, 3, height, 7)).astype(np.float32)} for height in heights]
    assert assert_removal_is_masking(model, feeds, others=others).groups


def test_padding_that_depends_on_the_input() -> None:
    text = f"""{IMAGE} {{ {CONV} {SIZE} pads = Concat<axis = 0>(none, none, p, none, none, none, p, none)
        b = Pad(a, pads) y = Conv(b, w9) }}"""
    at_other_heights(text, FIRST | LAST | NUMBERS, 12, 20)


def test_one_value_that_cannot_be_followed_leaves_the_others() -> None:
    text = f"""{IMAGE} {{ {CONV} i = Cast<to = 7>(x) j = ReduceMax<keepdims = 0>(i) k = Mul(j, none)
        h = Shape<start = 2, end = 3>(x) p = Mod(h, two)
        pads = Concat<axis = 0>(none, none, p, none, none, none, none, none) b = Pad(a, pads)
        c = Slice(b, k, big, two) y = Conv(c, w9) }}"""
    at_other_heights(text, FIRST | LAST | NUMBERS | {"big": [99]}, 9, 12)


def test_a_stored_width_in_a_shape_that_is_not_inferred() -> None:
    """Below opset 13 onnx infers nothing from what a Concat holds."""
    text = """(float[N, 6, 8] x) => (float[N, 6, D] y) { s = Shape(x) n = Gather(s, zero)
        c = Concat<axis = 0>(one, n, five) t = Identity(c) h = ConstantOfShape(t)
        r = Transpose<perm = [1, 0, 2]>(x) a = GRU<hidden_size = 5>(r, w, v, , , h) q = Squeeze<axes = [1]>(a)
        b = Transpose<perm = [1, 0, 2]>(q) y = MatMul(b, w1) }"""
    weights = {"w": (1, 15, 8), "v": (1, 15, 5), "w1": (5, 4), "zero": [0], "one": [1], "five": [5]}
    model, feeds = graph(text, weights, opset=12)
    assert len(assert_removal_is_masking(model, feeds, others=other(feeds)).groups) == 1
