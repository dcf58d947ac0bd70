"""Every operator kind as a matrix."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.layers import Bias
from tests.unit.layers.conftest import Find, noise


@pytest.mark.parametrize(
    ("shape", "attributes", "matrix", "kind"),
    [
        ((6, 4, 3), "", (1, 6, 12), "conv"),
        ((6, 4, 3, 5), "", (1, 6, 60), "conv"),
        ((6, 4, 2, 2, 2), "", (1, 6, 32), "conv"),
        ((6, 2, 3, 3), "<group=2>", (2, 3, 18), "conv"),
        ((8, 1, 3, 3), "<group=8>", (8, 1, 9), "conv"),
        ((16, 1, 3, 3), "<group=8>", (8, 2, 9), "conv"),  # depthwise with a multiplier
        ((4, 6, 3, 3), "", (1, 54, 4), "conv_transpose"),
        ((4, 3, 2, 2), "<group=2>", (2, 12, 2), "conv_transpose"),
    ],
)
def test_convolutions_as_matrices(
    find: Find, shape: tuple[int, ...], attributes: str, matrix: tuple[int, int, int], kind: str
) -> None:
    op = "Conv" if kind == "conv" else "ConvTranspose"
    groups = matrix[0]
    inputs = shape[1] * groups if op == "Conv" else shape[0]
    spatial = ", ".join("abc"[: len(shape) - 2])
    text = f"""g (float[N, {inputs}, {spatial}] x) => (float[N, C, {spatial.upper()}] y) {{
        y = {op}{attributes}(x, w) }}"""
    weight = noise(*shape)
    layers, skips = find(text, {"w": weight})
    layer = layers["w"]
    assert not skips
    assert (layer.kind, layer.view.matrix, layer.groups, layer.size) == (kind, matrix, groups, weight.size)
    assert layer.window is not None and layer.window.kernel == shape[2:]
    assert layer.depthwise == (kind == "conv" and groups == 8)
    as_matrix = layer.view.to_matrix(weight)
    if kind == "conv":
        np.testing.assert_array_equal(as_matrix, weight.reshape(matrix))
    else:  # rows are (output channel, offset), columns input channels
        parts = weight.reshape(groups, matrix[2], matrix[1])
        np.testing.assert_array_equal(as_matrix, parts.swapaxes(1, 2))
    np.testing.assert_array_equal(layer.view.to_stored(as_matrix), weight)


def test_window_of_a_convolution(find: Find) -> None:
    text = """g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) {
        z = Conv<strides=[2, 1], dilations=[1, 3], pads=[0, 1, 2, 3]>(x, w)
        y = Conv<auto_pad="SAME_LOWER">(z, v) }"""
    layers, _ = find(text, {"w": noise(6, 4, 3, 3), "v": noise(6, 6, 2, 2)})
    window = layers["w"].window
    assert window is not None
    assert (window.strides, window.dilations, window.pads) == ((2, 1), (1, 3), (0, 1, 2, 3))
    assert window.auto_pad == "NOTSET"
    window = layers["v"].window
    assert window is not None
    assert (window.strides, window.dilations, window.pads) == ((1, 1), (1, 1), (0,) * 4)
    assert window.auto_pad == "SAME_LOWER"


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(find: Find, trans_a: int, trans_b: int) -> None:
    shape, x = ((5, 8) if trans_b else (8, 5)), ("8, N" if trans_a else "N, 8")
    text = f"""g (float[{x}] x) => (float[N, 5] y) {{
        y = Gemm<transA={trans_a}, transB={trans_b}, alpha=0.5, beta=2.0>(x, w, b) }}"""
    weight = noise(*shape)
    layer = find(text, {"w": weight, "b": noise(5)})[0]["w"]
    assert (layer.kind, layer.view.matrix, layer.alpha) == ("gemm", (1, 5, 8), 0.5)
    assert layer.transposed_input == bool(trans_a)
    assert layer.bias == Bias("b", 1, 2.0)
    wanted = weight if trans_b else weight.T
    np.testing.assert_array_equal(layer.view.to_matrix(weight), wanted[None])


@pytest.mark.parametrize(
    ("text", "shape", "matrix", "transposed"),
    [
        ("g (float[N, 8] x) => (float[N, 5] y) { y = MatMul(x, w) }", (8, 5), (1, 5, 8), False),
        ("g (float[8] x) => (float[5] y) { y = MatMul(x, w) }", (8, 5), (1, 5, 8), False),
        ("g (float[A, B, N, 8] x) => (float[A, B, N, 5] y) { y = MatMul(x, w) }", (8, 5), (1, 5, 8), False),
        ("g (float[8, N] x) => (float[5, N] y) { y = MatMul(w, x) }", (5, 8), (1, 5, 8), True),
        ("g (float[3, N, 8] x) => (float[3, N, 5] y) { y = MatMul(x, w) }", (3, 8, 5), (3, 5, 8), False),
        ("g (float[N, 8] x) => (float[2, 3, N, 5] y) { y = MatMul(x, w) }", (2, 3, 8, 5), (6, 5, 8), False),
        ("g (float[3, 8, N] x) => (float[3, 5, N] y) { y = MatMul(w, x) }", (3, 5, 8), (3, 5, 8), True),
    ],
)  # fmt: skip
def test_matmul(
    find: Find, text: str, shape: tuple[int, ...], matrix: tuple[int, int, int], transposed: bool
) -> None:
    weight = noise(*shape)
    layer = find(text, {"w": weight})[0]["w"]
    assert (layer.kind, layer.view.matrix, layer.transposed_input) == ("matmul", matrix, transposed)
    wanted = weight if transposed else weight.swapaxes(-1, -2)
    np.testing.assert_array_equal(layer.view.to_matrix(weight), wanted.reshape(matrix))
    assert (layer.sites[0].input, layer.sites[0].output, layer.sites[0].node) == ("x", "y", 0)


def test_embedding_table(find: Find) -> None:
    layers, _ = find(
        "g (int64[N, T] ids) => (float[N, T, 8] y) { y = Gather(table, ids) }", {"table": noise(50, 8)}
    )
    assert (layers["table"].kind, layers["table"].view.matrix) == ("embedding", (1, 50, 8))
    assert layers["table"].sites[0].input == "ids"


def test_a_weight_behind_another_node_is_no_layer(find: Find) -> None:
    """It is named, not touched: storing it as it is used is a pass of its own, fold_moved."""
    text = "g (float[N, 8] x) => (float[N, 5] y) { t = Transpose<perm=[1, 0]>(w)  y = MatMul(x, t) }"
    layers, skips = find(text, {"w": noise(5, 8)})
    assert not layers and "read through Transpose, which is followed only where" in skips["w"].reason
    layers, skips = find(text.replace("Transpose<perm=[1, 0]>", "Sin"), {"w": noise(8, 5)})
    assert not layers and skips["w"].reason == "used by Sin, which is not a prunable operator"
