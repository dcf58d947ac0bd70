from __future__ import annotations

import numpy as np
import pytest

from onnxprune.scoring import CRITERIA, attention
from onnxprune.scoring.evidence import Evidence


def test_by_hand() -> None:
    """One input, always 1: scores are the weights themselves, 2 and 0; their root mean square is sqrt(2)."""
    W = np.array([[[2], [0]]], np.float32)
    a = attention.sample_attention(Evidence(W, np.ones((1, 1, 1)), np.ones((1, 1))))
    e = np.exp(2 / np.sqrt(2))
    np.testing.assert_allclose(a, [[2 * e / (e + 1), 2 / (e + 1)]])
    score = attention.saliency(Evidence(W, np.ones((1, 1, 1)), np.ones((1, 1))))
    np.testing.assert_allclose(score, [[[2 * 2 * e / (e + 1)], [0]]])
    assert not CRITERIA["attention"].per_row


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_samples(seed: int) -> None:
    """Close to softmax over real rows, but for what the ratio of means leaves out."""
    rng = np.random.default_rng(seed)
    X = rng.normal(rng.normal(size=5), 1.0, size=(20000, 5))
    W = rng.normal(size=(6, 5)).astype(np.float32)
    S = X @ W.T
    S /= np.sqrt((S**2).mean())
    A = np.exp(S) / np.exp(S).sum(1, keepdims=True)
    H = (X.T @ X / len(X))[None]
    found = attention.sample_attention(Evidence(W[None], H, X.mean(0)[None]))[0]
    wanted = A.mean(0) / A.mean()
    assert np.corrcoef(found, wanted)[0, 1] > 0.7
    assert np.abs(found - wanted).mean() < 0.25


def test_the_mean_is_one_whatever_the_units() -> None:
    rng = np.random.default_rng(0)
    W, X = rng.normal(size=(2, 6, 4)).astype(np.float32), rng.normal(1, 1, (2, 50, 4))
    H, mean = X.swapaxes(1, 2) @ X / 50, X.mean(1)
    a = attention.sample_attention(Evidence(W, H, mean))
    np.testing.assert_allclose(a.mean(1), 1)
    np.testing.assert_allclose(attention.sample_attention(Evidence(1000 * W, H, mean)), a, rtol=1e-5)
    np.testing.assert_allclose(attention.sample_attention(Evidence(W, 9 * H, 3 * mean)), a, rtol=1e-5)


def test_silence_pays_equal_attention() -> None:
    W = np.ones((1, 3, 2), np.float32)
    np.testing.assert_array_equal(attention.sample_attention(Evidence(W, np.zeros((1, 2, 2)))), [[1, 1, 1]])
