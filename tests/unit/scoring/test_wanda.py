from __future__ import annotations

import numpy as np

from onnxprune.scoring import CRITERIA, wanda
from onnxprune.scoring.evidence import Evidence


def test_weight_times_norm_of_the_input() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(2.0, 1.0, (1, 30, 3))
    W = rng.normal(size=(1, 4, 3)).astype(np.float32)
    score = wanda.saliency(Evidence(W, X.swapaxes(1, 2) @ X))
    np.testing.assert_allclose(score[0], np.abs(W[0]) * np.linalg.norm(X[0], axis=0), rtol=1e-6)
    assert CRITERIA["wanda"].per_row


def test_rounding_below_zero_is_zero() -> None:
    H = np.diag([1.0, -1e-12])[None]
    np.testing.assert_array_equal(wanda.saliency(Evidence(np.ones((1, 1, 2), np.float32), H)), [[[1, 0]]])
