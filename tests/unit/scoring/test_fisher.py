from __future__ import annotations

import numpy as np

from onnxprune.scoring import CRITERIA, fisher
from onnxprune.scoring.evidence import Evidence, Slopes


def test_by_hand() -> None:
    """w = 2, gradients 1 and 3: half of 4 times the mean of 1 and 9."""
    W = np.array([[[2, -0.5]]], np.float32)
    each = np.array([[[[1, 4]]], [[[3, 0]]]], np.float32)
    slopes = Slopes(each.mean(0), (each**2).mean(0), np.abs(each * W).mean(0))
    found = fisher.saliency(Evidence(W, np.eye(2)[None], slopes=slopes))
    np.testing.assert_allclose(found, [[[0.5 * 4 * 5, 0.5 * 0.25 * 8]]])
    assert not CRITERIA["fisher"].per_row


def test_predicts_the_rise_of_a_quadratic_loss() -> None:
    """Gaussian answers with variance 1 to a linear model: the loss rises by half of the squared change."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(20000, 3)), np.array([0.5, -1.0, 2.0])
    g = x * rng.normal(size=(20000, 1))
    slopes = Slopes(*(np.asarray(a, np.float32)[None, None] for a in (g.mean(0), (g**2).mean(0), g[0])))
    found = fisher.saliency(Evidence(w.astype(np.float32)[None, None], np.eye(3)[None], slopes=slopes))
    np.testing.assert_allclose(found[0, 0], 0.5 * ((x * w) ** 2).mean(0), rtol=0.1)
