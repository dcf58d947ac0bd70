"""Attributes are replaced, added and taken away."""

from __future__ import annotations

import pytest
from onnx import helper

from onnxprune.attributes import attribute
from onnxprune.structure.scene import set_attribute


@pytest.mark.parametrize(("name", "value"), [("axis", 2), ("other", [1, 2]), ("axis", None)])
def test_set_attribute(name: str, value: object) -> None:
    node = helper.make_node("Split", ["x"], ["y"], axis=1, num_outputs=2)
    set_attribute(node, name, value)
    assert attribute(node, name) == value
    assert attribute(node, "num_outputs") == 2 and len(node.attribute) == 2 + (name == "other") - (
        value is None
    )
