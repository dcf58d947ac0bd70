from __future__ import annotations

import numpy as np

from onnxprune.scoring import CRITERIA, taylor
from onnxprune.scoring.evidence import Evidence, Slopes


def test_by_hand() -> None:
    """w = 2, gradients 1 and -3: mean of 2 and 6, though the mean of the gradients is -1."""
    W = np.array([[[2, 0]]], np.float32)
    each = np.array([[[[1, 4]]], [[[-3, 9]]]], np.float32)
    slopes = Slopes(each.mean(0), (each**2).mean(0), np.abs(each * W).mean(0))
    np.testing.assert_allclose(taylor.saliency(Evidence(W, np.eye(2)[None], slopes=slopes)), [[[4, 0]]])
    assert not CRITERIA["taylor"].per_row
