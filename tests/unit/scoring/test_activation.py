from __future__ import annotations

import numpy as np

from onnxprune.scoring import CRITERIA, activation
from onnxprune.scoring.evidence import Evidence


def test_by_hand() -> None:
    """Inputs of size 1 and 2 that never meet: outputs are sqrt(3^2 1 + 0) and sqrt(0 + 1^2 4)."""
    W = np.array([[[-3, 0], [0, 1]]], np.float32)
    H = np.diag([1.0, 4.0])[None]
    np.testing.assert_allclose(activation.saliency(Evidence(W, H)), [[[3 * 1 * 3, 0], [0, 1 * 2 * 2]]])
    assert not CRITERIA["activation"].per_row


def test_of_equal_weights_those_of_the_quiet_output_count_less() -> None:
    """Both outputs have the weights 1 and +-1; the inputs are equal, so that one output is silent."""
    W = np.array([[[1, 1], [1, -1]]], np.float32)
    score = activation.saliency(Evidence(W, np.ones((1, 2, 2))))
    np.testing.assert_allclose(score, [[[2, 2], [0, 0]]])
