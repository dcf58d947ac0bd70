"""Every rule gives exact counts within the limits of the layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.allocation.rules import RULES, counts
from onnxprune.allocation.rules.facts import Facts

LAYERS = st.builds(
    lambda outputs, inputs, side, scale, outliers, highest: Facts(
        outputs * inputs * side * side,
        (1, outputs, inputs * side * side),
        (side, side) if side > 1 else (),
        highest,
        scale * np.linspace(0, 1, 100) ** 2,
        outliers,
    ),
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.floats(1e-6, 1e3), st.floats(0, 0.2),
    st.sampled_from([0.9, 0.98, 1.0]),
)  # fmt: skip


@given(st.sampled_from(sorted(RULES)), st.lists(LAYERS, min_size=1, max_size=6), st.floats(0, 1))
def test_exact_and_within_the_limits(rule: str, layers: list[Facts], sparsity: float) -> None:
    facts = {str(number): item for number, item in enumerate(layers)}
    zeros = round(sparsity * sum(item.size for item in layers))
    most = sum(int(item.highest * item.size) for item in layers)
    found = counts(RULES[rule], facts, zeros)
    assert sum(found.values()) == min(zeros, most)
    assert all(0 <= found[name] <= item.highest * item.size for name, item in facts.items())


@pytest.mark.parametrize("rule", sorted(RULES))
def test_no_layers(rule: str) -> None:
    assert counts(RULES[rule], {}, 0) == {}
