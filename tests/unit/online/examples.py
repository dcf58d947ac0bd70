"""Small models and samples that the tests of ``Pruner`` and of its sums share."""

from __future__ import annotations

import numpy as np

TEXT = """g (float[N, 16] x) => (float[N, 12] y) {
    a = MatMul(x, w1)  h = Add(a, b1)  r = Relu(h)  y = MatMul(r, w2) }"""
TABLE = """g (int64[N, T] ids) => (float[N, T, 20] y) { e = Gather(table, ids)  y = MatMul(e, w) }"""
_RANDOM = np.random.default_rng(5)
X = (_RANDOM.normal(size=(64, 16)) @ _RANDOM.normal(size=(16, 16))).astype(np.float32)
IDS = _RANDOM.integers(0, 30, (50, 4))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)
