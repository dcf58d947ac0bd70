from __future__ import annotations

import numpy as np

from onnxprune.scoring import CRITERIA, adaptive
from onnxprune.scoring.evidence import Evidence, Slopes


def layer(alpha: float) -> Evidence:
    """Contributions g of 1, 3, 2, 2 (mean 2) and inputs of size 1 and 3 (mean 2)."""
    taylor = np.array([[[1, 3], [2, 2]]], np.float32)
    slopes = Slopes(0 * taylor, 0 * taylor, taylor)
    return Evidence(np.ones((1, 2, 2), np.float32), np.diag([1.0, 9.0])[None], slopes=slopes, alpha=alpha)


def test_by_hand() -> None:
    found = adaptive.saliency(layer(1.0))
    np.testing.assert_allclose(found, [[[0.5 / (0.5 + 0.5), 1.5 / 3], [1 / (1 + 0.5), 1 / (1 + 1.5)]]])
    np.testing.assert_allclose(adaptive.saliency(layer(2.0))[0, 1], [1 / (1 + 1), 1 / (1 + 3)])
    assert not CRITERIA["adaptive"].per_row


def test_without_activations_everything_that_matters_is_equal() -> None:
    np.testing.assert_array_equal(adaptive.saliency(layer(0.0)), np.ones((1, 2, 2)))


def test_alpha_keeps_the_order() -> None:
    order = [np.argsort(adaptive.saliency(layer(a)), axis=None, kind="stable").tolist() for a in (0.1, 1, 9)]
    assert order[0] == order[1] == order[2]
