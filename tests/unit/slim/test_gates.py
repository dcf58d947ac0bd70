"""Gates as inputs: one session measures every branch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.slim.branches import find_branches, gated
from onnxprune.slim.gates import branch_effects
from onnxprune.structure.sample import sample

TEXT = """g (float[N, 4] x) => (float[N, 4] y) {
    h = Relu(x) a = MatMul(h, w) s = Add(a, h) b = MatMul(s, v) t = Add(b, s) y = Identity(t) }"""


@pytest.mark.parametrize("batches", [1, 3])
def test_relative_error_of_the_output_over_all_batches(
    build_model: Callable[..., onnx.ModelProto], batches: int
) -> None:
    rng = np.random.default_rng(0)
    w, v = (rng.normal(size=(4, 4)).astype(np.float32) for _ in range(2))
    model = Model(build_model(TEXT, {"w": w, "v": v}))
    feeds = [{"x": rng.normal(size=(6, 4)).astype(np.float32)} for _ in range(batches)]
    branches = find_branches(model, sample(model, feeds[0])[0])
    found = branch_effects(*gated(model, branches), feeds, [None] * batches)
    one, eye = np.eye(4), np.eye(4)
    for branch, (first, second) in zip(branches, ((0, 1), (1, 0)), strict=True):
        wanted = []
        for feed in feeds:
            h = np.maximum(feed["x"], 0)
            dense = h @ (one + w) @ (eye + v)
            without = h @ (one + first * w) @ (eye + second * v)
            wanted.append(np.square(dense - without).sum() / np.square(dense).sum())
        assert found[branch.name] == pytest.approx(np.mean(wanted), rel=1e-3)
