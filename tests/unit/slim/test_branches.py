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
from onnxprune.slim.trial import failing_branches
from onnxprune.slim.varied import varied_samples
from onnxprune.structure.sample import sample
from tests.unit.structure.graphs import graph

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


def test_a_skip_that_is_repeated_for_each_sample_stays(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = """g (float[N, 8] x) => (float[N, 4] y) {
        h = ReduceMean<axes=[0]>(x) a = MatMul(h, w1) b = Mul(a, x) s = Add(h, b)
        c = MatMul(s, w2) t = Add(s, c) y = MatMul(t, w3) }"""
    rng = np.random.default_rng(0)
    weights = {f"w{k}": rng.normal(size=(8, 4 if k == 3 else 8)).astype(np.float32) for k in (1, 2, 3)}
    model = Model(build_model(text, weights))
    one = {"x": FEED["x"][:1]}
    alone = sample(model, one)[0]
    feeds, others = varied_samples(model, one)
    assert [feed["x"].shape for feed in feeds] == [(2, 8)]
    assert [branch.output for branch in find_branches(model, alone)] == ["s", "t"]
    assert [branch.output for branch in find_branches(model, alone, *others)] == ["t"]
    found = find_branches(model, alone)
    assert list(failing_branches(model, found, [one, *feeds])) == ["Add(s)"]


def test_sizes_that_belong_together_vary_together(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = """g (float[N, S] a, float[N, S] b, float[3, T] c) => (float[N, S] y) {
        d = Add(a, b) e = ReduceSum(c) y = Mul(d, e) }"""
    feed = {
        "a": np.ones((1, 5), np.float32),
        "b": np.ones((1, 5), np.float32),
        "c": np.ones((3, 4), np.float32),
    }
    feeds, _ = varied_samples(Model(build_model(text)), feed)
    assert [[array.shape for array in found.values()] for found in feeds] == [
        [(2, 5), (2, 5), (3, 4)],
        [(1, 10), (1, 10), (3, 4)],
        [(1, 5), (1, 5), (3, 8)],
    ]


DOWN = """(float[N, 3, 8, 8] x) => (float[N, 5, 3, 3] y) {
    p = Conv(x, w0)  r = Relu(p)
    a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(r, w1)  b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w2)
    SKIP  s = Add(c, q)  t = Relu(s)
    y = Conv(t, w4) }"""
SKIPS = {
    "projection": "q = Conv<strides = [2, 2]>(r, w3)",
    "pooled projection": "o = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(r) q = Conv(o, w3)",
    "pooled and padded": "o = MaxPool<kernel_shape = [1, 1], strides = [2, 2]>(r) q = Pad(o, by)",
}


@pytest.mark.parametrize("skip", SKIPS.values(), ids=SKIPS)
def test_a_block_around_a_projection(skip: str) -> None:
    weights = {
        "w0": (4, 3, 1, 1),
        "w1": (6, 4, 3, 3),
        "w2": (7, 6, 3, 3),
        "w3": (7, 4, 1, 1),
        "w4": (5, 7, 2, 2),
    }
    text = DOWN.replace("SKIP", skip)
    model, feeds = graph(text, weights | {"by": [0, 0, 0, 0, 0, 3, 0, 0]})
    (branch,) = find_branches(model, sample(model, feeds)[0])
    assert (branch.skip, branch.value) == ("q", "c")
    assert failing_branches(model, [branch], [feeds]) == {}
    smaller = bypass(model, [branch])
    assert not {"w1", "w2"} & smaller.index.tensors.keys()


@pytest.mark.parametrize(
    "skip",
    [
        "o = Mul(r, p) q = Conv<strides = [2, 2]>(o, w3)",  # starts at two values
        "o = Conv<strides = [2, 2]>(r, w3) q = Conv(o, w5)",  # as deep as the branch
    ],
)
def test_what_is_no_projection(skip: str) -> None:
    weights = {
        "w0": (4, 3, 1, 1),
        "w1": (6, 4, 3, 3),
        "w2": (7, 6, 3, 3),
        "w3": (7, 4, 1, 1),
        "w4": (5, 7, 2, 2),
    }
    model, feeds = graph(DOWN.replace("SKIP", skip), weights | {"w5": (7, 7, 1, 1)})
    assert not find_branches(model, sample(model, feeds)[0])
