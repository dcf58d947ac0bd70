from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.passes.device_products import device_matrix, find_device_products


def test_products_with_bias_and_activation(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = """g (float[B, 64] x) => (float[B, 24] z) {
        a = MatMul(x, w)
        h = Add(a, b)
        r = Relu(h)
        z = Gemm<transB=1>(r, v, c)
    }"""
    shapes = {"w": (64, 40), "v": (24, 40), "b": (40,), "c": (24,)}
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    two = Model(build_model(text, weights))
    found, refusals = find_device_products(two)
    assert refusals == {}
    assert (found["w"].bias, found["w"].activation, found["w"].nodes) == ("b", "Relu", (0, 1, 2))
    assert (found["v"].bias, found["v"].trans, found["v"].output) == ("c", True, "z")
    matrix = device_matrix(two, found["w"])
    assert matrix is not None and matrix.shape == (40, 64) and matrix.dtype == np.float16


@pytest.mark.parametrize(
    ("node", "name"),
    [("Relu(a)", "Relu"), ("Gelu(a)", "Gelu"), ('Gelu<approximate="tanh">(a)', "GeluTanh"), ("Tanh(a)", "")],
)
def test_activations_of_sixteen_bit_models(
    build_model: Callable[..., onnx.ModelProto], node: str, name: str
) -> None:
    weight = np.eye(32, 16, dtype=np.float16)
    text = f"g (float16[B, 32] x) => (float16[B, 16] z) {{ a = MatMul(x, p) z = {node} }}"
    found, _ = find_device_products(Model(build_model(text, {"p": weight}, 20)))
    assert found["p"].activation == name


@pytest.mark.parametrize(
    ("text", "opset", "reason"),
    [
        ("g (float[B, 32] x) => (float[B, 16] z) { z = MatMul(x, p) }", 12, "opset 12, wanted 13"),
        (
            "g (float[B, 32] x) => (float[B, 16] z) { z = Gemm<alpha=2.0>(x, p) }",
            17,
            "its Gemm has transA or alpha",
        ),
        (
            "g (float[32, B] x) => (float[B, 16] z) { z = Gemm<transA=1>(x, p) }",
            17,
            "its Gemm has transA or alpha",
        ),
        (
            "g (float[B, 32] x) => (float[B, 16] z) { a = MatMul(x, p) b = MatMul(x, p) z = Add(a, b) }",
            17,
            "more than one node reads the weight",
        ),
        (
            "g (float[B, 32] x, float[B, 16] c) => (float[B, 16] z) { z = Gemm(x, p, c) }",
            17,
            "the C of its Gemm is not one number",
        ),
    ],
)
def test_refusals(build_model: Callable[..., onnx.ModelProto], text: str, opset: int, reason: str) -> None:
    model = Model(build_model(text, {"p": np.ones((32, 16), np.float32)}, opset))
    found, refusals = find_device_products(model)
    assert not found and refusals["p"].startswith(reason)


def test_bias_that_others_see_stays(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = "g (float[B, 32] x) => (float[B, 16] z, float[B, 16] a) { a = MatMul(x, p) z = Add(a, b) }"
    weights = {"p": np.ones((32, 16), np.float32), "b": np.ones(16, np.float32)}
    found, _ = find_device_products(Model(build_model(text, weights)))
    assert found["p"].nodes == (0,) and not found["p"].bias


def test_values_beyond_float16(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = "g (float[B, 32] x) => (float[B, 16] z) { a = MatMul(x, p) z = Add(a, b) }"
    weights = {"p": np.full((32, 16), 1e6, np.float32), "b": np.ones(16, np.float32)}
    for name in ("p", "b"):
        model = Model(build_model(text, weights | {name: weights[name][:]}))
        found, _ = find_device_products(model)
        assert device_matrix(model, found["p"]) is None
        weights = {"p": np.ones((32, 16), np.float32), "b": np.full(16, 1e6, np.float32)}


@pytest.mark.parametrize(
    ("conv", "shape", "reason"),
    [
        ("Conv(x, p)", (16, 32, 3, 3), "its kernel is 3x3: only 1x1 is a product"),
        ("Conv<group=2>(x, p)", (16, 16, 1, 1), "it has 2 groups"),
        ("Conv<strides=[2, 2]>(x, p)", (16, 32, 1, 1), "it has strides or pads"),
        ("Conv<pads=[0, 1, 0, 0]>(x, p)", (16, 32, 1, 1), "it has strides or pads"),
        ("Conv(x, p, c)", (16, 32, 1, 1), "its bias is computed"),
    ],
)
def test_refused_convolutions(
    build_model: Callable[..., onnx.ModelProto], conv: str, shape: tuple[int, ...], reason: str
) -> None:
    text = f"g (float[B, 32, 5, 5] x, float[16] c) => (float[B, 16, H, W] z) {{ z = {conv} }}"
    found, refusals = find_device_products(Model(build_model(text, {"p": np.ones(shape, np.float32)})))
    assert not found and refusals["p"].startswith(reason)
