"""What is added behind a layer."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.layers import Bias
from tests.unit.layers.conftest import Find, noise


@pytest.mark.parametrize(
    ("body", "bias", "wanted"),
    [
        ("m = MatMul(x, w) y = Add(m, b)", (5,), Bias("b", 1, 1.0)),
        ("m = MatMul(x, w) y = Add(b, m)", (5,), Bias("b", 1, 1.0)),
        ("m = MatMul(x, w) y = Add(m, b)", (1, 5), Bias("b", 1, 1.0)),
        ("m = MatMul(x, w) y = Add(m, b)", (4, 5), None),  # one for each row
        ("m = MatMul(x, w) y = Add(m, b)", (4, 1), None),
        ("m = MatMul(x, w) y = Add(m, b)", (1,), None),
        ("m = MatMul(x, w) y = Sub(m, b)", (5,), None),
        ("m = MatMul(x, w) r = Relu(m) y = Add(r, b)", (5,), None),
        ("m = MatMul(x, w) n = Add(m, b) y = Mul(n, b)", (5,), None),  # b is used elsewhere
        ("m = MatMul(x, w) n = Add(m, b) y = Mul(n, m)", (5,), None),  # so is m
        ("y = Gemm(x, w, b)", (5,), Bias("b", 1, 1.0)),
        ("y = Gemm(x, w, b)", (1, 5), Bias("b", 1, 1.0)),
        ("y = Gemm(x, w, b)", (4, 5), None),
        ("y = Gemm<beta=0.0>(x, w, b)", (5,), None),
        ("y = Gemm<beta=-0.5>(x, w, b)", (5,), Bias("b", 1, -0.5)),
        ("m = Gemm(x, w) y = Add(m, b)", (5,), Bias("b", 1, 1.0)),
        ('m = Gemm(x, w, "") y = Add(m, b)', (5,), Bias("b", 1, 1.0)),
        ("h = Gemm(x, w, b) k = Identity(b) y = Add(h, k)", (5,), None),
    ],
)  # fmt: skip
def test_bias_of_matrices(find: Find, body: str, bias: tuple[int, ...], wanted: Bias | None) -> None:
    layers, _ = find(
        f"g (float[4, 8] x) => (float[4, 5] y) {{ {body} }}", {"w": noise(8, 5), "b": noise(*bias)}
    )
    assert layers["w"].bias == wanted


def test_a_column_of_a_square_gemm_is_no_bias(find: Find) -> None:
    """C of shape (M, 1) has as many elements as outputs when M equals them, but belongs to the rows."""
    layers, _ = find(
        "g (float[5, 8] x) => (float[5, 5] y) { y = Gemm(x, w, b) }", {"w": noise(8, 5), "b": noise(5, 1)}
    )
    assert layers["w"].bias is None


@pytest.mark.parametrize(
    ("body", "bias", "wanted"),
    [
        ("y = Conv(x, w, b)", (5,), Bias("b", 1, 1.0)),
        ("c = Conv(x, w) y = Add(c, b)", (1, 5, 1, 1), Bias("b", 1, 1.0)),
        ("c = Conv(x, w) y = Add(b, c)", (5, 1, 1), Bias("b", 1, 1.0)),
        ("c = Conv(x, w) y = Add(c, b)", (1, 1, 1, 5), None),  # along the width
        ("c = Conv(x, w) y = Add(c, b)", (5,), None),
        ("c = Conv(x, w) y = Add(c, b)", (1, 1, 5, 1), None),
        ("y = ConvTranspose(x, v, b)", (5,), None),
    ],
)
def test_bias_of_convolutions(find: Find, body: str, bias: tuple[int, ...], wanted: Bias | None) -> None:
    weights = {"w": noise(5, 4, 1, 1), "v": noise(4, 5, 1, 1), "b": noise(*bias)}
    layers, _ = find(f"g (float[N, 4, 5, 5] x) => (float[N, 5, 5, 5] y) {{ {body} }}", weights)
    assert len(layers) == 1
    assert next(iter(layers.values())).bias == wanted


def test_mean_of_a_batch_normalization(find: Find) -> None:
    text = """g (float[N, 4, H, W] x) => (float[N, 5, H, W] y, float[5] z) {
        c = Conv(x, w)  y = BatchNormalization(c, scale, shift, mean, var)  z = Relu(READ) }"""
    weights = {
        "w": noise(5, 4, 1, 1),
        **{n: np.ones(5, np.float32) for n in ("scale", "shift", "mean", "var")},
    }
    assert find(text.replace("READ", "var"), weights)[0]["w"].bias == Bias("mean", -1, 1.0)
    assert find(text.replace("READ", "mean"), weights)[0]["w"].bias is None  # it belongs to two


def test_batch_normalization_over_tokens_is_no_bias(find: Find) -> None:
    """Axis 1 of a 3-D MatMul output is the token, even when there are as many as features."""
    text = """g (float[N, 5, 8] x) => (float[N, 5, 5] y) {
        m = MatMul(x, w)  y = BatchNormalization(m, scale, shift, mean, var) }"""
    weights = {"w": noise(8, 5), **{n: np.ones(5, np.float32) for n in ("scale", "shift", "mean", "var")}}
    assert find(text, weights)[0]["w"].bias is None


def test_a_bias_that_is_a_graph_output_stays(find: Find) -> None:
    layers, _ = find(
        "g (float[N, 8] x) => (float[N, 5] y, float[5] b) { m = MatMul(x, w) y = Add(m, b) }",
        {"w": noise(8, 5), "b": noise(5)},
    )
    assert layers["w"].bias is None


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("m = MatMul(x, w) y = Add(m, x)", "x"),
        ("m = MatMul(x, w) y = Add(x, m)", "x"),
        ("m = MatMul(x, w) n = Add(m, b) y = Add(n, x)", "x"),
        ("m = Gemm(x, w, b) y = Add(x, m)", "x"),
        ("m = MatMul(x, w) y = Mul(x, m)", ""),
        ("m = MatMul(x, w) n = Relu(m) y = Add(n, x)", ""),
        ("m = MatMul(x, w) y = Add(m, m)", ""),
        ("m = MatMul(x, w) n = Add(m, x) y = Mul(m, n)", ""),  # m is needed elsewhere
    ],
)
def test_residual(find: Find, body: str, wanted: str) -> None:
    weights = {"w": noise(8, 8), "b": noise(8)}
    layers, _ = find(f"g (float[N, 8] x) => (float[N, 8] y) {{ {body} }}", weights)
    assert layers["w"].sites[0].residual == wanted


def test_residual_of_convolutions(find: Find) -> None:
    text = "g (float[N, 4, H, W] x) => (float[N, 4, H, W] y) { c = Conv(x, w) d = Add(c, b) y = Add(x, d) }"
    layers, _ = find(text, {"w": noise(4, 4, 1, 1), "b": noise(1, 4, 1, 1)})
    assert (layers["w"].sites[0].residual, layers["w"].bias) == ("x", Bias("b", 1, 1.0))
