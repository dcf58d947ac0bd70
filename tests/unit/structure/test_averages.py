"""Scale and epsilon of RMS normalisations, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.attributes import number
from onnxprune.structure.find import find_structure
from onnxprune.structure.removal import remove_units
from tests.unit.structure.graphs import TOKENS, graph


@pytest.mark.parametrize(
    ("norm", "epsilon"),
    [
        ("SimplifiedLayerNormalization<axis = -1, epsilon = 0.25>(a, s)", 0.25),
        ("SimplifiedLayerNormalization<axis = -1>(a, s)", 1e-5),
        ("com.microsoft.SkipSimplifiedLayerNormalization(a, a, s)", 1e-12),
    ],
)
def test_by_hand(norm: str, epsilon: float) -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w0) b = {norm} y = MatMul(b, w1) }}"
    model, feeds = graph(text, {"w0": (6, 12), "w1": (12, 4), "s": (12,)})
    structure = find_structure(model, feeds)
    smaller = remove_units(model, structure, {structure.groups[0].name: np.arange(12) >= 3})
    assert number(smaller.graph.node[1], "epsilon", 0) == pytest.approx(4 * epsilon)
    assert smaller.array("s") == pytest.approx(2 * model.array("s")[:3])


def test_nothing_goes_and_nothing_changes() -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w0) b = SimplifiedLayerNormalization(a, s) y = MatMul(b, w1) }}"
    model, feeds = graph(text, {"w0": (6, 12), "w1": (12, 4), "s": (12,)})
    assert remove_units(model, find_structure(model, feeds), {}).to_bytes() == model.to_bytes()
