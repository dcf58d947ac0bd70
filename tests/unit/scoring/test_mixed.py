from __future__ import annotations

import numpy as np
import pytest

from onnxprune.recipe.mixture import Mixture
from onnxprune.scoring import CRITERIA, mixed
from onnxprune.scoring.evidence import Evidence, Slopes

W = np.array([[[1, -3], [2, 2]]], np.float32)  # magnitudes have mean 2
TAYLOR = np.array([[[8, 0], [4, 4]]], np.float32)  # mean 4
LAYER = Evidence(W, np.diag([1.0, 4.0])[None], slopes=Slopes(TAYLOR, TAYLOR, TAYLOR))


def test_each_by_its_mean() -> None:
    found = mixed.saliency(Mixture.parse("magnitude+taylor"), LAYER)
    np.testing.assert_allclose(found, [[[0.5 + 2, 1.5 + 0], [1 + 1, 1 + 1]]])
    weighted = mixed.saliency(Mixture.parse("0.2*magnitude+3*taylor"), LAYER)
    np.testing.assert_allclose(weighted, [[[0.1 + 6, 0.3], [0.2 + 3, 0.2 + 3]]])


@pytest.mark.parametrize("name", CRITERIA)
def test_alone_it_is_as_it_is(name: str) -> None:
    np.testing.assert_array_equal(mixed.saliency(Mixture.parse(name), LAYER), CRITERIA[name].saliency(LAYER))


def test_a_score_that_is_zero_everywhere_adds_nothing() -> None:
    dead = Evidence(W, np.zeros((1, 2, 2)))
    np.testing.assert_allclose(mixed.saliency(Mixture.parse("wanda+magnitude"), dead), np.abs(W) / 2)


def test_emphasis_by_hand() -> None:
    assert mixed.emphasis(Mixture.parse("obs"), LAYER) is None
    found = mixed.emphasis(Mixture.parse("obs+taylor"), LAYER)
    np.testing.assert_allclose(found, [[[(1 + 2) / 2, 0.5], [1, 1]]])
    found = mixed.emphasis(Mixture.parse("3*obs+taylor"), LAYER)
    np.testing.assert_allclose(found, [[[(3 + 2) / 4, 0.75], [1, 1]]])


@pytest.mark.parametrize(
    ("text", "rows"), [("wanda", True), ("wanda+magnitude", False), ("fisher", False), ("obs", False)]
)
def test_rows_are_compared_unless_all_forbid_it(text: str, rows: bool) -> None:
    assert mixed.per_row(Mixture.parse(text)) == rows
