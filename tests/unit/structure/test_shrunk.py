"""Shapes after units went."""

from __future__ import annotations

import numpy as np

from onnxprune.structure.find import find_structure
from onnxprune.structure.shrunk import Shrunk
from tests.unit.structure.graphs import IMAGE, graph


def test_sizes() -> None:
    text = f"{IMAGE} {{ a = Conv(x, w0) b = Concat<axis = 1>(a, a) y = Conv(b, w1) }}"
    structure = find_structure(*graph(text, {"w0": (8, 3, 1, 1), "w1": (4, 16, 1, 1)}))
    shrunk = Shrunk(structure, {structure.groups[0].name: np.arange(8) < 3})
    assert shrunk.shape("a") == (2, 5, 6, 7) and shrunk.shape("b")[1] == shrunk.size("w1", 1) == 10
    kept = shrunk.kept("b", 1)
    assert kept is not None and kept.tolist() == [*[False] * 3, *[True] * 5] * 2
    assert shrunk.kept("b", 0) is None and shrunk.kept("y", 1) is None
    assert shrunk.changed("a") and not shrunk.changed("y") and not shrunk.changed("unknown")
