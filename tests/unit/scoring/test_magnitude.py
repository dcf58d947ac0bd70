from __future__ import annotations

import numpy as np

from onnxprune.scoring import CRITERIA, magnitude
from onnxprune.scoring.evidence import Evidence


def test_absolute_value_whatever_the_inputs() -> None:
    W = np.array([[[-3, 2], [0, -1]]], np.float32)
    found = magnitude.saliency(Evidence(W, np.eye(2)[None] * 9))
    np.testing.assert_array_equal(found, [[[3, 2], [0, 1]]])
    assert not CRITERIA["magnitude"].per_row
