from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.passes.regions import (
    ELEMENTWISE,
    MAX_NODES,
    Activation,
    Normalisation,
    activation,
    normalisation,
    regions,
    run,
)

Build = Callable[..., onnx.ModelProto]
NUMBERS = {
    "root": 2**0.5, "inverse": 2**-0.5, "one": 1, "half": 0.5, "three": 3, "two": 2, "six": 6, "zero": 0,
    "cubic": 0.044715, "pi": 0.7978846, "low": -0.5, "sixth": 1 / 6, "quick": 1.702,
}  # fmt: skip


def model(build: Build, body: str, opset: int = 17, output: str = "y") -> Model:
    text = f"g (float[N, 8] a) => (float[N, 8] {output}) {{ x = Neg(a) {body} }}"
    constants = {name: np.array(value, np.float32) for name, value in NUMBERS.items() if name in body}
    return Model(build(text, constants, opset))


FORMS = {
    "relu": ("y = Relu(x)", "Relu"),
    "max": ("y = Max(x, zero)", "Relu"),
    "clip from zero": ("y = Clip(x, zero)", "Relu"),
    "erf, divided": ("d = Div(x, root) e = Erf(d) s = Add(e, one) p = Mul(x, s) y = Mul(p, half)", "Gelu"),
    "erf, multiplied": (
        "d = Mul(x, inverse) e = Erf(d) s = Add(one, e) p = Mul(s, x) y = Mul(half, p)", "Gelu"),
    "erf, half first": ("h = Mul(x, half) d = Div(x, root) e = Erf(d) s = Add(e, one) y = Mul(h, s)", "Gelu"),
    "erf, half of gate": (
        "d = Div(x, root) e = Erf(d) s = Add(e, one) h = Mul(s, half) y = Mul(h, x)", "Gelu"),
    "tanh, power": (
        "q = Pow(x, three) c = Mul(q, cubic) s = Add(x, c) t = Mul(s, pi) u = Tanh(t) v = Add(u, one) "
        "h = Mul(x, half) y = Mul(h, v)", "GeluTanh"),
    "tanh, products": (
        "q = Mul(x, x) r = Mul(q, x) c = Mul(r, cubic) s = Add(x, c) t = Mul(pi, s) u = Tanh(t) "
        "v = Add(one, u) w = Mul(x, v) y = Mul(w, half)", "GeluTanh"),
    "silu": ("s = Sigmoid(x) y = Mul(x, s)", "Silu"),
    "hard swish": ("y = HardSwish(x)", "HardSwish"),
    "hard sigmoid": ("s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(s, x)", "HardSwish"),
    "Paddle": ("s = Add(x, three) c = Clip(s, zero, six) m = Mul(x, c) y = Div(m, six)", "HardSwish"),
    "Paddle, folded": (
        "s = Add(x, three) c = Clip(s, zero, six) m = Mul(c, sixth) y = Mul(x, m)", "HardSwish"),
    "relu 6": ("s = Add(x, three) r = Relu(s) c = Min(r, six) m = Mul(x, c) y = Div(m, six)", "HardSwish"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "name"), FORMS.values(), ids=FORMS)
def test_activations_are_known_however_they_are_written(build_model: Build, body: str, name: str) -> None:
    net = model(build_model, body)
    found = activation(net, "x")
    assert found is not None and found[1] == Activation(name)
    assert found[0].output == "y" and found[0].nodes == tuple(range(1, len(net.graph.node)))


@pytest.mark.parametrize(("approximate", "name"), [("none", "Gelu"), ("tanh", "GeluTanh")])
def test_gelu_op(build_model: Build, approximate: str, name: str) -> None:
    net = model(build_model, f'y = Gelu <approximate = "{approximate}"> (x)', 20)
    found = activation(net, "x")
    assert found is not None and found[1].name == name


def test_limits_of_clip(build_model: Build) -> None:
    largest = float(np.finfo(np.float32).max)
    for body, wanted in (
        ("y = Clip(x, low, six)", (-0.5, 6.0)),
        ("y = Clip(x, , six)", (-largest, 6.0)),
        ("y = Clip(x, low)", (-0.5, largest)),
        ("m = Min(x, six) y = Max(m, low)", (-0.5, 6.0)),
        ("r = Relu(x) y = Min(r, six)", (0.0, 6.0)),
    ):
        found = activation(model(build_model, body), "x")
        assert found is not None and (found[1].low, found[1].high) == wanted


@pytest.mark.parametrize(
    "body",
    [
        "y = Mul(x, half)",
        "y = Identity(x)",
        "y = Clip(x)",
        "y = Tanh(x)",
        "y = Sigmoid(x)",
        "y = Softmax(x)",
        "s = Mul(x, quick) t = Sigmoid(s) y = Mul(x, t)",  # QuickGelu
        "d = Div(x, two) e = Erf(d) s = Add(e, one) p = Mul(x, s) y = Mul(p, half)",  # nearly Gelu
        "s = Sigmoid(x) t = Mul(x, s) u = Add(t, s) y = Neg(u)",
    ],
)
def test_other_functions(build_model: Build, body: str) -> None:
    assert activation(model(build_model, body), "x") is None


def test_values_that_others_read(build_model: Build) -> None:
    inside = model(build_model, "s = Sigmoid(x) t = Mul(x, s) y = Add(t, s)")
    assert activation(inside, "x") is None
    start = model(build_model, "r = Relu(x) y = Add(r, x)")
    assert activation(start, "x") is None
    text = "g (float[N, 8] a) => (float[N, 8] y, float[N, 8] x) { x = Neg(a) y = Relu(x) }"
    assert activation(Model(build_model(text)), "x") is None


def test_a_subgraph_reads_it(build_model: Build) -> None:
    text = """g (float[N, 8] a, bool c) => (float[N, 8] y, float[N, 8] z) {
        x = Neg(a) y = Relu(x)
        z = If (c) <then_branch = t () => (float[N, 8] p) { p = Abs(x) },
                    else_branch = e () => (float[N, 8] q) { q = Neg(x) }> }"""
    assert activation(Model(build_model(text)), "x") is None


def test_regions_end(build_model: Build) -> None:
    body = "v0 = Neg(x) " + " ".join(f"v{i + 1} = Neg(v{i})" for i in range(20)) + " y = Neg(v20)"
    found = list(regions(model(build_model, body), "x", ELEMENTWISE, 1))
    assert [len(region.nodes) for region in found] == list(range(1, MAX_NODES + 1))


def test_a_region_that_cannot_be_run(build_model: Build) -> None:
    net = model(build_model, "y = Relu(x)")
    (region,) = regions(net, "x", ELEMENTWISE, 1)
    assert run(net, region, np.ones(3, np.float32)) is not None
    net.graph.node[1].attribute.append(onnx.helper.make_attribute("alpha", "text"))
    net.graph.node[1].op_type = "HardSigmoid"
    assert run(net, region, np.ones(3, np.float32)) is None


LAYER_NORM = """m = ReduceMean <axes = [-1]> (x) c = Sub(x, m) q = Pow(c, two)
    v = ReduceMean <axes = [-1]> (q) e = Add(v, eps) s = Sqrt(e) d = Div(c, s) g = Mul(d, gamma)
    y = Add(g, beta)"""


def normed(build: Build, body: str, opset: int = 17, **changes: Any) -> Model:
    text = f"g (float[N, 8] a) => (float[N, 8] y) {{ x = Neg(a) {body} }}"
    rng = np.random.default_rng(0)
    constants = {
        "gamma": rng.standard_normal(8).astype(np.float32),
        "beta": rng.standard_normal(8).astype(np.float32),
        "eps": np.array(1e-3, np.float32),
        "two": np.array(2, np.float32),
        **changes,
    }
    return Model(build(text, {k: v for k, v in constants.items() if k in body}, opset))


@pytest.mark.parametrize(
    ("body", "opset", "epsilon"),
    [
        ("y = LayerNormalization <axis = -1, epsilon = 0.001> (x, gamma, beta)", 17, 1e-3),
        ("y = LayerNormalization(x, gamma, beta)", 17, 1e-5),
        (LAYER_NORM, 12, 1e-3),
        (LAYER_NORM.replace("Pow(c, two)", "Mul(c, c)"), 17, 1e-3),
    ],
)
def test_normalisation(build_model: Build, body: str, opset: int, epsilon: float) -> None:
    net = normed(build_model, body, opset)
    found = normalisation(net, "x", 8)
    assert found is not None and found[0].output == "y"
    assert found[1] == Normalisation("gamma", "beta", pytest.approx(epsilon))
    assert len(found[0].nodes) == len(net.graph.node) - 1


@pytest.mark.parametrize(
    "body",
    [
        "y = LayerNormalization <axis = 0> (x, gamma, beta)",
        "y = LayerNormalization(x, gamma)",
        LAYER_NORM.replace("axes = [-1]> (q)", "axes = [0]> (q)"),
        LAYER_NORM.replace("Sqrt(e)", "Neg(e)"),
        LAYER_NORM.replace("Div(c, s)", "Div(x, s)"),
        LAYER_NORM.replace("Add(g, beta)", "Sub(g, beta)"),
        "y = Relu(x)",
    ],
)
def test_other_normalisations(build_model: Build, body: str) -> None:
    assert normalisation(normed(build_model, body), "x", 8) is None
