"""Integer inputs follow; each family's own tests run the models."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import ModelError
from onnxprune.structure.find import find_structure
from onnxprune.structure.removal import remove_units
from tests.unit.structure.graphs import TOKENS, graph


def test_what_stays_is_counted_before_each_bound() -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w0) b = Slice(a, from, to, at) c, d = Split<axis = -1>(b, sizes)"
    model, feeds = graph(
        f"{text} e = Relu(d) y = MatMul(e, w1) }}",
        {"w0": (6, 9), "w1": (4, 3), "from": [2], "to": [-1], "at": [2], "sizes": [2, 4]},
    )
    structure = find_structure(model, feeds)
    (group,) = [group for group in structure.groups if group.units == 4]  # at positions 4 to 7 of a
    smaller = remove_units(model, structure, {group.name: np.array([True, False, True, False])})
    step = {node.op_type: node for node in smaller.graph.node}
    assert [smaller.array(name).tolist() for name in step["Slice"].input[1:3]] == [[2], [-1]]
    assert smaller.array(step["Split"].input[1]).tolist() == [2, 2]
    assert smaller.array("w0").shape == (6, 7) and smaller.array("w1").shape == (2, 3)


def test_a_shape_in_an_attribute_is_refused() -> None:
    model, feeds = graph(
        "(float[2, 3] x) => (float[2, 4] y) { a = MatMul(x, w0) b = Reshape(a, to) y = MatMul(b, w1) }",
        {"w0": (3, 8), "w1": (8, 4), "to": [2, 8]},
    )
    structure = find_structure(model, feeds)
    del model.graph.node[1].input[1:]
    with pytest.raises(ModelError, match="shape as an attribute"):
        remove_units(model, structure, {structure.groups[0].name: np.arange(8) == 0})
