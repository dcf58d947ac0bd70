from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.attention.samples import attended_inputs, sample_attention


def test_by_hand() -> None:
    X = np.array([[1, 0, 0, 0], [0, 2, 0, 0]], np.float32)
    W = np.array([[2 * np.log(3), 0, 0, 0], [0, np.log(2), 0, 0]], np.float32)
    # scores x w / 2: (log 3, 0) and (0, log 2)
    np.testing.assert_allclose(sample_attention(X, W), [[3 / 4, 1 / 4], [1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(attended_inputs(X, W)[0, :2], [3 / 4, 2 / 3], rtol=1e-6)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1.0, 1e4]))
def test_each_sample_has_one_attention_to_give(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    X, W = (rng.normal(0, 1, (n, 5)).astype(np.float32) * np.float32(scale) for n in (7, 3))
    A = sample_attention(X, W)
    assert A.shape == (7, 3) and np.isfinite(A).all() and (A >= 0).all()
    np.testing.assert_allclose(A.sum(1), 1, rtol=1e-5)


def test_shards_add() -> None:
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(9, 5)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_allclose(
        attended_inputs(X[:3], W) + attended_inputs(X[3:], W), attended_inputs(X, W), rtol=1e-6
    )
