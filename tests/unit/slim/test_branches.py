"""Residual branches: which can go, and that a closed gate is the model without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.model import Model
from onnxprune.slim.branches import bypass, close, find_branches, gated
from onnxprune.slim.gates import branch_effects
from onnxprune.structure.sample import sample

TEXT = """g (float[N, 8] x, float[N, 8] mask) => (float[N, 4] y) {
    h = MatMul(x, w0)
    a1 = MatMul(h, w1)  m = Mul(mask, two)  a2 = Mul(a1, m)  a = Relu(a2)  s = Add(h, a)
    b1 = MatMul(s, w2)  b2 = Mul(b1, m)  t = Add(b2, s)
    c1 = MatMul(h, w3)  u = Add(c1, t)
    y = MatMul(u, w4) }"""


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"w{k}": rng.normal(size=(8, 4 if k == 4 else 8)).astype(np.float32) for k in range(5)
    }
    return Model(build_model(TEXT, weights | {"two": np.float32(2.0)}))


FEED = {
    "x": np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32),
    "mask": np.random.default_rng(2).random((5, 8)).astype(np.float32),
}


def outputs(model: Model) -> np.ndarray:
    onnx.checker.check_model(model.proto, full_check=True)
    return np.asarray(runtime.session(model.proto).run(None, FEED)[0])


def test_finds_what_serves_nothing_else(model: Model) -> None:
    found = find_branches(model, sample(model, FEED)[0])
    # c1 is added to t but starts elsewhere, so no skip is left of it; the mask serves both blocks
    assert [(branch.skip, branch.value) for branch in found] == [("h", "a"), ("s", "b2")]
    ops = [[model.graph.node[k].output[0] for k in sorted(branch.nodes)] for branch in found]
    assert ops == [["a1", "a2", "a"], ["b1", "b2"]]


@pytest.mark.parametrize("chosen", [(0,), (1,), (0, 1)])
def test_a_closed_gate_is_the_model_without_the_branch(model: Model, chosen: tuple[int, ...]) -> None:
    branches = find_branches(model, sample(model, FEED)[0])
    out = [branches[k] for k in chosen]
    with_gates, gates = gated(model, branches)
    np.testing.assert_allclose(outputs(with_gates), outputs(model), rtol=1e-5)
    close(with_gates, gates, [branch.name for branch in out])
    smaller = bypass(model, out)
    np.testing.assert_allclose(outputs(smaller), outputs(with_gates), rtol=1e-4, atol=1e-4)
    assert len(smaller.graph.node) < len(model.graph.node)
    assert sum(name in smaller.index.tensors for name in ("w1", "w2")) == 2 - len(chosen)
    assert len(branches) == 2 and branches[1].skip == "s"  # what was given is as it was


def test_effects_are_those_of_each_branch_alone(model: Model) -> None:
    branches = find_branches(model, sample(model, FEED)[0])
    with_gates, gates = gated(model, branches)
    found = branch_effects(with_gates, gates, [FEED], [None])
    dense = outputs(model)
    for branch in branches:
        error = np.square(outputs(bypass(model, [branch])) - dense).sum() / np.square(dense).sum()
        assert 0 < found[branch.name] < 10 * error + 10
