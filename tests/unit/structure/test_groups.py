"""What a structure says of a model."""

from __future__ import annotations

import pytest

from onnxprune.structure.find import find_structure
from tests.unit.structure.graphs import TOKENS, graph

TEXT = f"{TOKENS} {{ a = MatMul(x, w0) b = Add(a, b0) c = Relu(b) y = MatMul(c, w1) }}"
WEIGHTS = {"w0": (6, 8), "b0": (8,), "w1": (8, 4)}


def test_parts_and_counts() -> None:
    structure = find_structure(*graph(TEXT, WEIGHTS))
    (group,) = structure.groups
    assert structure.group(group.name) is group
    assert [part.tensor for part in group.producers] == ["w0"]
    assert [(part.tensor, part.axis) for part in group.consumers] == [("w1", 0)]
    assert group.weights.tolist() == [6 + 1 + 4] * 8
    assert group.kind == "neuron" and len(group.nodes) == 3


def test_elements_inside_groups() -> None:
    text = f"""{TOKENS} {{ a = MatMul(x, w0) b, c = Split<axis = -1>(a, parts) d = MatMul(c, w1)
        y = Concat<axis = -1>(b, d) }}"""
    structure = find_structure(*graph(text, {"w0": (6, 8), "parts": [3, 5], "w1": (5, 4)}))
    assert structure.inside("w0") == 6 * 5 and structure.inside("w1") == 20


def test_an_unknown_name() -> None:
    with pytest.raises(KeyError, match="nothing"):
        find_structure(*graph(TEXT, WEIGHTS)).group("nothing")
