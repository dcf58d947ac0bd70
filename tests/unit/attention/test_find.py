"""Attention is found in every form, and what only looks like it is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.attention.find import find_attention
from onnxprune.io import load
from onnxprune.layers import find_layers
from onnxprune.model import Model
from tests.unit.attention.forms import FUSED, HEADS, MASKED, NAMES, make

Build = Callable[..., onnx.ModelProto]


@pytest.mark.parametrize("name", NAMES)
def test_every_form(name: str) -> None:
    case = make(name)
    (block,), rejected = find_attention(case.model)
    assert not rejected
    assert block.heads == HEADS
    fused = name in FUSED or "com.microsoft.Attention" in name
    assert block.weights.names == (("wqkv", "wo") if fused else ("wq", "wk", "wv", "wo"))
    assert (block.output, block.residual) == ("r", "x")
    assert bool(block.mask) == (name in MASKED)
    operator = case.model.graph.node[block.node].op_type
    assert block.fused == (operator != "Softmax")
    if block.fused:
        assert block.form.removeprefix("com.microsoft.") == operator
    else:
        assert block.form == "decomposed" and block.probabilities.startswith("p")


def test_the_sample(digits_transformer: Path) -> None:
    model = load(digits_transformer)
    blocks, rejected = find_attention(model)
    assert len(blocks) == 2 and not rejected
    layers = {layer.name for layer in find_layers(model)[0]}
    for number, block in enumerate(blocks, 1):
        assert block.heads == 4
        wanted = [f"layer{number}.attention.{part}.weight" for part in ("query", "key", "value", "output")]
        assert list(block.weights.names) == wanted
        assert set(wanted) <= layers


def test_a_convolutional_model_has_none(digits_cnn: Path) -> None:
    assert find_attention(load(digits_cnn)) == ((), ())


HEAD = "g (float[2, 5, 8] x, float[2, 5, 8] z) => (float[A, B, C] y) {"
REFUSED = {
    "s = MatMul(x, w) y = Softmax<axis = -1>(s)": "enters no product",
    "s = MatMul(x, w) p = Softmax<axis = -1>(s) y = MatMul(p, w)": "are weights",
    "s = MatMul(x, v) p = Softmax<axis = -1>(s) y = MatMul(p, z)": "come from a weight",
    "p = Softmax<axis = -1>(x) t = Transpose<perm = [0, 2, 1]>(z) q = MatMul(p, t) y = Relu(q)":
        "no product of queries and keys",
    "t = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, t) p = Softmax<axis = 1>(s) y = MatMul(p, z)":
        "normalises axis 1",
    "t = Transpose<perm = [0, 2, 1]>(z) s = MatMul(x, t) p = Softmax<axis = -1>(s) y = MatMul(t, p)":
        "does not sum over the axis",
    """t = Transpose<perm = [0, 2, 1]>(z) s = MatMul(x, t) p = Softmax<axis = -1>(s)
        y = Einsum<equation = "bqk,bkd->bqd">(p, z)""": "is not a product of",
}  # fmt: skip


@pytest.mark.parametrize("body", REFUSED)
def test_what_only_looks_like_it(build_model: Build, body: str) -> None:
    weights = {"w": np.ones((8, 8), np.float32), "v": np.ones((8, 5), np.float32)}
    model = Model(build_model(f"{HEAD} {body} }}", {k: v for k, v in weights.items() if f", {k})" in body}))
    blocks, (rejected,) = find_attention(model)
    assert not blocks
    assert REFUSED[body] in rejected.reason
    assert rejected.node.startswith(("Softmax", "p", "y"))


def test_old_softmax_flattens_what_follows(build_model: Build) -> None:
    """Before opset 13 axis 1 of three axes means both that follow."""
    text = f"{HEAD} t = Transpose<perm = [0, 2, 1]>(z) s = MatMul(x, t) p = Softmax(s) y = MatMul(p, z) }}"
    assert len(find_attention(Model(build_model(text)))[0]) == 1
    _, (rejected,) = find_attention(Model(build_model(text, opset=12)))
    assert "normalises axis 1" in rejected.reason


def test_inside_a_subgraph(build_model: Build) -> None:
    text = """g (bool c, float[2, 5, 5] x) => (float[2, 5, 5] y) {
        y = If(c) <then_branch = a () => (float[2, 5, 5] s) { s = Softmax(x) },
                   else_branch = b () => (float[2, 5, 5] r) { r = Relu(x) }> }"""
    blocks, (rejected,) = find_attention(Model(build_model(text)))
    assert not blocks and "inside the subgraph of If" in rejected.reason


def test_an_operator_that_is_not_known() -> None:
    node = onnx.helper.make_node("QAttention", ["x"], ["y"], domain="com.microsoft", num_heads=2)
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [tensor("x", 1, [1, 4, 8])], [tensor("y", 1, [1, 4, 8])])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    _, (rejected,) = find_attention(Model(onnx.helper.make_model(graph, opset_imports=opsets)))
    assert rejected.reason == "QAttention does not give its probabilities"


def test_rotated_and_normalised_queries(build_model: Build) -> None:
    """Rotary positions (whose table comes from a product as well) and a norm stand before the weight."""
    text = """g (float[2, 5, 8] x, float[2, 5, 1] place) => (float[2, 5, 8] y) {
        angle = MatMul(place, frequencies) c = Cos(angle) s = Sin(angle)
        q0 = MatMul(x, wq) qn = LayerNormalization(q0, one) qc = Mul(qn, c)
        q1, q2 = Split<axis = 2>(qn, half) qm = Neg(q2) qr = Concat<axis = 2>(qm, q1)
        qs = Mul(qr, s) q = Add(qc, qs)
        k0 = MatMul(x, wk) kc = Mul(k0, c) kt = Transpose<perm = [0, 2, 1]>(kc)
        v = MatMul(x, wv) sc = MatMul(q, kt) p = Softmax(sc) o = MatMul(p, v) y = Relu(o) }"""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in ("wq", "wk", "wv")}
    weights |= {"frequencies": np.ones((1, 8), np.float32), "one": np.ones(8, np.float32)}
    weights |= {"half": np.array([4, 4], np.int64)}
    (block,), _ = find_attention(Model(build_model(text, weights)))
    assert block.weights.names == ("wq", "wk", "wv")
    assert block.weights.output is None and (block.output, block.residual) == ("", "")


def test_a_mask_from_a_product_is_not_taken_for_the_scores(build_model: Build) -> None:
    text = """g (float[2, 5, 8] x, float[2, 5, 1] real) => (float[2, 5, 8] y) {
        turned = Transpose<perm = [0, 2, 1]>(real) both = MatMul(real, turned) less = Sub(both, one)
        mask = Mul(less, large)
        q = MatMul(x, wq) k = MatMul(x, wk) kt = Transpose<perm = [0, 2, 1]>(k) v = MatMul(x, wv)
        s0 = MatMul(q, kt) s1 = Div(s0, root) s2 = Identity(s1) s = Add(mask, s2) p = Softmax(s)
        y = MatMul(p, v) }"""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in ("wq", "wk", "wv")}
    weights |= {"one": np.float32(1), "large": np.float32(1e4), "root": np.float32(3)}
    (block,), _ = find_attention(Model(build_model(text, {k: np.asarray(v) for k, v in weights.items()})))
    assert (block.query, block.key, block.mask) == ("q", "kt", "mask")
