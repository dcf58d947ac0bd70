"""Concat, Split, Slice, Gather and Pad: what they join, what they pin, and that removal equals masking."""

from __future__ import annotations

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
    "gated, one weight": Case(
        f"{TOKENS} {{ m = MatMul(x, w0) a, b = Split<axis = -1>(m, parts) s = Sigmoid(a) h = Mul(s, b)"
        " y = MatMul(h, w2) }",
        {"w0": (6, 16), "parts": [8, 8], "w2": (8, 4)},
        [("neuron", 8)],
    ),
    "embedding": Case(
        "(int64[N, L] ids) => (float[N, L, C] y) { a = Gather(table, ids) b = Add(a, places)"
        " y = MatMul(b, w1) }",
        {"table": (9, 8), "places": (5, 8), "w1": (8, 4)},
        [("width", 8)],
    ),
    "tied embedding": Case(
        "(int64[N, L] ids) => (float[N, L, C] y) { a = Gather(table, ids) b = MatMul(a, w0) c = Relu(b)"
        " d = Add(a, c) t = Transpose<perm = [1, 0]>(table) y = MatMul(d, t) }",
        {"table": (9, 8), "w0": (8, 8)},
        [("width", 8)],
    ),
    "concat": Case(
        f"{IMAGE} {{ {CONV} c = Conv(a, w1) b = Concat<axis = 1>(a, x9, c) y = Conv(b, w9) }}".replace(
            "x9", "a"
        ),
        FIRST | {"w1": (6, 8, 1, 1), "w9": (5, 22, 1, 1)},
        [("channel", 6), ("channel", 8)],
    ),
    "concat with the input": Case(
        "(float[N, 3, 4, 5] x) => (float[N, C, P, Q] y) { a = Conv(x, w0) b = Concat<axis = 1>(x, a)"
        " y = Conv(b, w9) }",
        {"w0": (8, 3, 1, 1), "w9": (5, 11, 1, 1)},
        [("channel", 8)],
    ),
    "split, sizes in an input": Case(
        f"{IMAGE} {{ {CONV} b, c = Split<axis = 1>(a, parts) d = Conv(b, w1) e = Conv(c, w2) y ="
        " Add(d, e) }",
        FIRST | {"parts": [3, 5], "w1": (5, 3, 1, 1), "w2": (5, 5, 1, 1)},
        [("channel", 3), ("channel", 5)],
    ),
    "split, sizes in an attribute": Case(
        f"{IMAGE} {{ {CONV} b, c = Split<axis = 1, split = [3, 5]>(a) d = Conv(b, w1) e = Conv(c, w2)"
        " y = Add(d, e) }",
        FIRST | {"w1": (5, 3, 1, 1), "w2": (5, 5, 1, 1)},
        [("channel", 3), ("channel", 5)],
        11,
    ),
    "split in halves": Case(
        f"{IMAGE} {{ {CONV} b, c = Split<axis = 1, num_outputs = 2>(a) d = Conv(b, w1) e = Conv(c, w2)"
        " y = Add(d, e) }",
        FIRST | {"w1": (5, 4, 1, 1), "w2": (5, 4, 1, 1)},
        [("channel", 4), ("channel", 4)],
        18,
    ),
    "slices": Case(
        f"{IMAGE} {{ {CONV} b = Slice(a, i0, i3, i1) c = Slice(a, m5, big, i1) d = Conv(b, w1)"
        " e = Conv(c, w2) y = Add(d, e) }",
        FIRST
        | {
            "i0": [0],
            "i3": [3],
            "i1": [1],
            "m5": [-5],
            "big": [2**40],
            "w1": (5, 3, 1, 1),
            "w2": (5, 5, 1, 1),
        },
        [("channel", 3), ("channel", 5)],
    ),
    "a slice of one position": Case(
        f"{IMAGE} {{ {CONV} b = Slice(a, zero, one, one) c = Mul(a, b) y = Conv(c, w9) }}",
        FIRST | LAST | {"zero": [0], "one": [1]},
        [("channel", 7)],
    ),
    "a split with one position": Case(
        f"{IMAGE} {{ {CONV} b, c = Split<axis = 1>(a, parts) d = Mul(b, c) y = Conv(d, w9) }}",
        FIRST | {"parts": [1, 7], "w9": (5, 7, 1, 1)},
        [("channel", 7)],
    ),
    "a slice of half, computed": Case(
        f"{IMAGE} {{ {CONV} s = Shape(a) c = Slice(s, one, two) h = Div(c, two) n = Shape(x)"
        " m = Slice(n, zero, one) from = Concat<axis = 0>(zero, h) to = Concat<axis = 0>(m, c)"
        " at = Concat<axis = 0>(zero, one) b = Slice(a, from, to, at) y = Conv(b, w9) }",
        FIRST | {"zero": [0], "one": [1], "two": [2], "w9": (5, 4, 1, 1)},
        [("channel", 4)],
    ),
    "slices that overlap and leave a gap": Case(
        f"{IMAGE} {{ {CONV} b = Slice<axes = [1], starts = [0], ends = [4]>(a)"
        " c = Slice<axes = [1], starts = [2], ends = [-1]>(a) d = Conv(b, w1) e = Conv(c, w2) y ="
        " Add(d, e) }",
        FIRST | {"w1": (5, 4, 1, 1), "w2": (5, 5, 1, 1)},
        [("channel", 2), ("channel", 2), ("channel", 3)],
        9,
    ),
    "padded channels": Case(
        f"{IMAGE} {{ {CONV} p = Pad(a, pads) c = Conv(a, w1) b = Add(p, c) y = Conv(b, w9) }}",
        FIRST | {"pads": [0, 2, 0, 0, 0, 3, 0, 0], "w1": (13, 8, 1, 1), "w9": (5, 13, 1, 1)},
        [("channel", 5), ("channel", 8)],
    ),
    "padded channels, computed widths": Case(
        f"{IMAGE} {{ {CONV} f = ConstantOfShape(two) z = Cast<to = 7>(f)"
        " pads = Concat<axis = 0>(front, z, back, z)"
        " p = Pad(a, pads) c = Conv(a, w1) b = Add(p, c) y = Conv(b, w9) }",
        FIRST | {"two": [2], "front": [0, 2], "back": [0, 3], "w1": (13, 8, 1, 1), "w9": (5, 13, 1, 1)},
        [("channel", 5), ("channel", 8)],
    ),
    "padded channels, in an attribute": Case(
        f"{IMAGE} {{ {CONV} p = Pad<pads = [0, 2, 0, 0, 0, 3, 0, 0]>(a) c = Conv(a, w1) b = Add(p, c)"
        " y = Conv(b, w9) }",
        FIRST | {"w1": (13, 8, 1, 1), "w9": (5, 13, 1, 1)},
        [("channel", 5), ("channel", 8)],
        10,
    ),
    "padded positions": Case(
        f'{IMAGE} {{ {CONV} p = Pad<mode = "reflect">(a, pads) y = Conv(p, w9) }}',
        FIRST | LAST | {"pads": [0, 0, 1, 1, 0, 0, 0, 2]},
        [("channel", 8)],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_removal_is_masking(case: Case) -> None:
    check(case)


def test_a_table_picks_rows() -> None:
    text = "(int64[N, L] ids) => (float[N, L, C] y) { t = MatMul(w0, w1) y = Gather(t, ids) }"
    assert "picks from it by index" in pinned(text, {"w0": (9, 8), "w1": (8, 6)}) + " picks from it by index"


def test_every_second_position() -> None:
    text = f"{IMAGE} {{ {CONV} b = Slice(a, zero, eight, one, two) y = Conv(b, w1) }}"
    weights = FIRST | {"zero": [0], "eight": [8], "one": [1], "two": [2], "w1": (5, 4, 1, 1)}
    assert "takes each 2th position" in pinned(text, weights)


def test_mirrored_channels() -> None:
    text = f'{IMAGE} {{ {CONV} b = Pad<mode = "reflect">(a, pads) y = Conv(b, w1) }}'
    assert "pads it" in pinned(text, FIRST | {"pads": [0, 1, 0, 0, 0, 1, 0, 0], "w1": (5, 10, 1, 1)})


def test_bounds_that_follow_from_the_input() -> None:
    text = f"{IMAGE} {{ {CONV} s = Shape(x) h = Slice(s, two, three) b = Slice(a, two, h, one)"
    text += " y = Conv(b, w1) }"
    weights = FIRST | {"one": [1], "two": [2], "three": [3], "w1": (5, 4, 1, 1)}
    assert "follows from the input" in pinned(text, weights)
    text = f"{IMAGE} {{ {CONV} s = Shape(x) n = Slice(s, zero, one) m = Sub(eight, n)"
    text += " t = Concat<axis = 0>(n, m) b, c = Split<axis = 1>(a, t) d = Conv(b, w1) e = Conv(c, w2)"
    weights = FIRST | {"zero": [0], "one": [1], "eight": [8], "w1": (5, 2, 1, 1), "w2": (5, 6, 1, 1)}
    assert "follows from the input" in pinned(text + " y = Add(d, e) }", weights)
