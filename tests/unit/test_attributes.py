"""Attributes, and what stands for them when a node has none."""

from __future__ import annotations

from onnx import helper

from onnxprune.attributes import attribute, ints, number

NODE = helper.make_node("Op", ["x"], ["y"], name="n", text="SAME_UPPER", pads=[1, 2], group=4, alpha=0.5)


def test_values_have_their_types() -> None:
    assert attribute(NODE, "text") == "SAME_UPPER"
    assert ints(NODE, "pads", ()) == (1, 2)
    assert (number(NODE, "group", 1), number(NODE, "alpha", 1.0)) == (4.0, 0.5)


def test_defaults() -> None:
    assert attribute(NODE, "axis") is None and attribute(NODE, "axis", 3) == 3
    assert ints(NODE, "strides", (1, 1)) == (1, 1)
    assert number(NODE, "beta", 1.0) == 1.0


def test_another_type_is_as_good_as_none() -> None:
    assert ints(NODE, "group", (7,)) == (7,)
    assert number(NODE, "text", 2.0) == 2.0
