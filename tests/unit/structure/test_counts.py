"""Attributes follow; each family's own tests run the models."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.attributes import attribute
from onnxprune.structure.find import find_structure
from onnxprune.structure.removal import remove_units
from tests.unit.structure.graphs import CONV, FIRST, IMAGE, LAST, TOKENS, graph

CASES = {
    "group": (
        f"{IMAGE} {{ {CONV} b = Conv<group = 8>(a, d) y = Conv(b, w9) }}",
        FIRST | LAST | {"d": (8, 1, 3, 3)}, 5,
    ),
    "num_groups": (
        f"{IMAGE} {{ {CONV} b = GroupNormalization<num_groups = 4>(a, g, g) y = Conv(b, w9) }}",
        FIRST | LAST | {"g": (8,)}, 1,
    ),
    "hidden_size": (
        f"{TOKENS} {{ a = GRU<hidden_size = 8>(x, w, r) s = Squeeze(a, one) y = MatMul(s, w9) }}",
        {"w": (1, 24, 6), "r": (1, 24, 8), "one": [1], "w9": (8, 4)}, 5,
    ),
    "q_num_heads": (
        f"""{TOKENS} {{ q = MatMul(x, w0) c = Attention<q_num_heads = 4, kv_num_heads = 4>(q, q, q)
        y = MatMul(c, w9) }}""",
        {"w0": (6, 8), "w9": (8, 4)}, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)
def test_attributes(name: str, case: tuple[str, dict[str, object], int]) -> None:
    text, weights, left = case
    model, feeds = graph(text, weights, 23)
    structure = find_structure(model, feeds)
    (group,) = structure.groups
    smaller = remove_units(model, structure, {group.name: np.arange(group.units) < 3})
    (found,) = [value for node in smaller.graph.node if (value := attribute(node, name)) is not None]
    assert found == left
