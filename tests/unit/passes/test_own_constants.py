from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.passes.own_constants import needs_own_constants, own_constants

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 5, 5)).astype(np.float32)
WEIGHTS = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {"v": (4, 4, 3, 3), "w": (4, 4, 3, 3), "b": (4,), "m": (5, 5), "r": (5,)}.items()
}
Build = Callable[..., onnx.ModelProto]


def changed(build: Build, body: str, names: Sequence[str]) -> Model:
    """The model after the pass, which gives the same outputs as before."""
    text = f"g (float[N, 4, 5, 5] x) => (float[N, C, H, W] y) {{ {body} }}"
    model = Model(build(text, {name: WEIGHTS[name] for name in names}))
    wanted = runtime.session(model.proto, threads=1).run(None, {"x": X})
    assert needs_own_constants(model)
    assert own_constants(model) > 0
    assert not needs_own_constants(model) and own_constants(model) == 0
    onnx.checker.check_model(model.proto, full_check=True)
    found = runtime.session(model.proto, threads=1).run(None, {"x": X})
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(a, b)
    return model


def biases(model: Model) -> list[str]:
    return [layer.bias.name for layer in find_layers(model, min_size=1)[0] if layer.bias]


def test_biases_behind_identity(build_model: Build) -> None:
    body = "i = Identity(b) a = Conv(x, v, b) j = Identity(i) y = Conv(a, w, j)"
    model = changed(build_model, body, ["v", "w", "b"])
    assert [node.op_type for node in model.graph.node] == ["Conv", "Conv"]
    assert len(set(biases(model))) == 2
    assert biases(model)[0] == "b"  # the first keeps its own


def test_biases_of_several_layers(build_model: Build) -> None:
    body = "p = MatMul(x, m) q = Add(p, r) s = MatMul(q, m) y = Add(r, s)"
    model = changed(build_model, body, ["m", "r"])
    assert model.graph.node[1].input[1] == "r" != model.graph.node[3].input[0]
    np.testing.assert_array_equal(model.array(model.graph.node[3].input[0]), WEIGHTS["r"])


def test_weights_behind_identity_are_tied(build_model: Build) -> None:
    body = "i = Identity(m) p = MatMul(x, m) y = MatMul(p, i)"
    model = changed(build_model, body, ["m"])
    (layer,), _ = find_layers(model, min_size=1)
    assert len(layer.sites) == 2


def test_a_vector_that_something_else_reads_too(build_model: Build) -> None:
    model = changed(build_model, "p = MatMul(x, m) q = Add(p, r) y = Mul(q, r)", ["m", "r"])
    assert model.graph.node[2].input[1] == "r" != model.graph.node[1].input[1]
    assert biases(model)


def test_constant_nodes(build_model: Build) -> None:
    body = """k = Constant <value = float[5] {1, 2, 3, 4, 5}> ()
        i = Identity(k) p = MatMul(x, m) q = Add(p, k) s = MatMul(q, m) y = Add(s, i)"""
    model = changed(build_model, body, ["m"])
    assert sum(node.op_type == "Identity" for node in model.graph.node) == 0


@pytest.mark.parametrize(
    "body",
    [
        "p = Conv(x, v, b) y = Relu(p)",
        "i = Identity(x) y = Conv(i, v, b)",  # computes nothing, but it is no constant
        "p = MatMul(x, m) y = MatMul(p, m)",
        "p = Mul(x, r) y = Mul(p, r)",
    ],
)
def test_what_is_left_alone(build_model: Build, body: str) -> None:
    names = [name for name in WEIGHTS if f"{name})" in body or f" {name}," in body]
    text = f"g (float[N, 4, 5, 5] x) => (float[N, C, H, W] y) {{ {body} }}"
    model = Model(build_model(text, {name: WEIGHTS[name] for name in names}))
    before = model.to_bytes()
    assert not needs_own_constants(model) and own_constants(model) == 0
    assert model.to_bytes() == before


def test_what_callers_can_replace(build_model: Build) -> None:
    text = "g (float[N, 5] x, float[5] r) => (float[N, 5] y) { i = Identity(r) p = Add(x, r) y = Add(p, i) }"
    model = Model(build_model(text, {"r": WEIGHTS["r"]}))
    assert not needs_own_constants(model) and own_constants(model) == 0


def test_vectors_of_shape_arithmetic(build_model: Build) -> None:
    text = """g (float[N, 6] x) => (float[2, 3] y) {
        k = Constant <value_ints = [1, 1]> () p = Add(s, k) q = Add(s, p) r = Sub(q, p) t = Add(r, k)
        u = Add(t, k) v = Sub(u, k) y = Reshape(x, v) }"""
    model = Model(build_model(text, {"s": np.array([0, 1], np.int64)}))
    assert not needs_own_constants(model)


def test_an_identity_that_is_an_output(build_model: Build) -> None:
    text = "g (float[N, 5] x) => (float[N, 5] y, float[5] i) { i = Identity(r) p = Add(x, r) y = Add(p, i) }"
    model = Model(build_model(text, {"r": WEIGHTS["r"]}))
    assert own_constants(model) > 0
    assert (
        runtime.session(model.proto, threads=1).run(["i"], {"x": X[0, 0]})[0].tolist()
        == WEIGHTS["r"].tolist()
    )
