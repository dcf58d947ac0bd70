from __future__ import annotations

import numpy as np

from onnxprune.scoring import CRITERIA, gradient
from onnxprune.scoring.evidence import Evidence, Slopes


def test_by_hand() -> None:
    """Gradients 3 and -3 of two samples have mean 0 and size 3; 1 and 7 have size 5."""
    each = np.array([[[[3, 1]]], [[[-3, 7]]]], np.float32)
    W = np.array([[[0, 2]]], np.float32)
    slopes = Slopes(each.mean(0), (each**2).mean(0), np.abs(each * W).mean(0))
    np.testing.assert_allclose(gradient.saliency(Evidence(W, np.eye(2)[None], slopes=slopes)), [[[3, 5]]])
    assert not CRITERIA["gradient"].per_row
