"""What a smaller model still has of each value of the dense one."""

from __future__ import annotations

import numpy as np

from onnxprune import runtime
from onnxprune.model import Model
from onnxprune.structure.find import find_structure
from onnxprune.structure.remains import remains
from onnxprune.structure.removal import remove_units
from tests.unit.structure.graphs import CONV, FIRST, IMAGE, graph

TEXT = f"{IMAGE} {{ {CONV} b = Relu(a) c = Concat<axis = 1>(b, b) y = Conv(c, w9) }}"
WEIGHTS = FIRST | {"w9": (5, 16, 1, 1)}


def value(model: Model, name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    proto = model.copy().proto
    proto.graph.output.add(name=name)
    found: np.ndarray = runtime.session(proto.SerializeToString()).run([name], feeds)[0]
    return found


def test_positions_are_those_of_the_first_model_after_two_rounds() -> None:
    dense, feeds = graph(TEXT, WEIGHTS)
    model, left = dense, None
    for gone in ([1, 4], [0, 3]):
        structure = find_structure(model, feeds)
        (group,) = structure.groups
        removed = {group.name: np.isin(np.arange(group.units), gone)}
        model, left = remove_units(model, structure, removed), remains(structure, removed, left)
    assert left is not None and left["a"][1].tolist() == [2, 3, 6, 7]
    assert left["c"][1].tolist() == [2, 3, 6, 7, 10, 11, 14, 15]
    assert left["w0"].keys() == {0} and left["w9"].keys() == {1}
    assert "x" not in left and "y" not in left
    for name in ("b", "c"):
        axis, positions = next(iter(left[name].items()))
        wanted = np.take(value(dense, name, feeds), positions, axis)
        np.testing.assert_allclose(value(model, name, feeds), wanted, rtol=1e-5, atol=1e-5)


def test_nothing_removed_nothing_shrinks() -> None:
    structure = find_structure(*graph(TEXT, WEIGHTS))
    assert remains(structure, {}) == {}
