from __future__ import annotations

import numpy as np

from onnxprune.scoring import CRITERIA, magnitude


def test_absolute_value_whatever_the_inputs() -> None:
    W = np.array([[[-3, 2], [0, -1]]], np.float32)
    np.testing.assert_array_equal(magnitude.saliency(W, np.eye(2)[None] * 9), [[[3, 2], [0, 1]]])
    assert not CRITERIA["magnitude"].per_row
