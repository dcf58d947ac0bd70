"""Masks make columns zero, and must fit."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.structure.find import find_structure
from onnxprune.structure.masking import mask_units
from tests.unit.structure.graphs import TOKENS, graph

TEXT = f"{TOKENS} {{ a = MatMul(x, w0) b = Add(a, b0) c = Relu(b) y = MatMul(c, w1) }}"
WEIGHTS = {"w0": (6, 8), "b0": (8,), "w1": (8, 4)}


def test_only_columns_change() -> None:
    model, feeds = graph(TEXT, WEIGHTS)
    structure = find_structure(model, feeds)
    mask = np.arange(8) % 3 == 0
    masked = mask_units(model, structure, {structure.groups[0].name: mask})
    assert not masked.array("w1")[mask].any()
    assert np.array_equal(masked.array("w1")[~mask], model.array("w1")[~mask])
    assert np.array_equal(masked.array("w0"), model.array("w0"))


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("other", np.zeros(8, bool), "no group 'other'"),
        ("MatMul(a)", np.zeros(7, bool), "wanted 8 booleans"),
        ("MatMul(a)", np.zeros(8, int), "wanted 8 booleans"),
        ("MatMul(a)", np.ones(8, bool), "its last unit cannot go"),
    ],
)
def test_masks_must_fit(name: str, mask: np.ndarray, message: str) -> None:
    model, feeds = graph(TEXT, WEIGHTS)
    with pytest.raises(UsageError, match=message):
        mask_units(model, find_structure(model, feeds), {name: mask})
