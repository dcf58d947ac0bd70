"""Every operator kind as a matrix, its bias and residual, and what is left alone with which reason."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.layers import Bias, Layer, MatrixView, Skip, find_layers, heads
from onnxprune.model import Model

Build = Callable[..., onnx.ModelProto]
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def find(build_model: Build) -> Callable[..., tuple[dict[str, Layer], dict[str, Skip]]]:
    def run(
        text: str, weights: dict[str, np.ndarray], *, min_size: int = 1, opset: int = 17, **globs: list[str]
    ) -> tuple[dict[str, Layer], dict[str, Skip]]:
        model = Model(build_model(text, weights, opset=opset))
        layers, skips = find_layers(model, min_size=min_size, **globs)
        return {layer.name: layer for layer in layers}, {skip.name: skip for skip in skips}

    return run


Find = Callable[..., tuple[dict[str, Layer], dict[str, Skip]]]


# ------------------------------------------------------------------------------------------ as a matrix


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


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).flatmap(
        lambda split: st.tuples(st.just(tuple(split)), st.permutations(range(len(split))))
    )
)
def test_view_round_trip(drawn: tuple[tuple[int, ...], list[int]]) -> None:
    split, perm = drawn
    size = int(np.prod(split))
    permuted = [split[axis] for axis in perm]
    view = MatrixView(split, split, tuple(perm), (permuted[0], size // permuted[0], 1))
    array = np.arange(size, dtype=np.float32).reshape(split)
    matrix = view.to_matrix(array)
    assert matrix.shape == view.matrix
    np.testing.assert_array_equal(matrix.ravel(), array.transpose(perm).ravel())
    back = view.to_stored(matrix)
    np.testing.assert_array_equal(back, array)
    assert back.flags.c_contiguous


# ---------------------------------------------------------------------------------- where weights may be


def test_weights_in_constant_nodes() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 8] x) => (float[N, 5] y) { m = MatMul(x, w) y = Add(m, b) }"""
    )
    for name, array in (("b", noise(5)), ("w", noise(8, 5))):
        node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        proto.graph.node.insert(0, node)
    layers, _ = find_layers(Model(proto), min_size=1)
    assert [layer.name for layer in layers] == ["w"]
    assert layers[0].bias == Bias("b", 1, 1.0)
    assert layers[0].sites[0].node == 2


def test_an_initializer_that_is_also_an_input(build_model: Build) -> None:
    proto = build_model("g (float[N, 8] x) => (float[N, 5] y) { y = MatMul(x, w) }", {"w": noise(8, 5)})
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 5]))
    layers, _ = find_layers(Model(proto), min_size=1)
    assert [layer.name for layer in layers] == ["w"]


def test_tied_weights_have_several_sites(find: Find) -> None:
    text = """g (float[N, 8] x) => (float[N, 8] y) {
        [first] a = MatMul(x, w)  s = Add(a, b)  r = Relu(s)  [second] y = MatMul(r, w) }"""
    layers, _ = find(text, {"w": noise(8, 8), "b": noise(8)})
    layer = layers["w"]
    assert [(site.node, site.input) for site in layer.sites] == [(0, "x"), (3, "r")]
    assert layer.nodes == ("first", "second")
    assert layer.bias is None  # b belongs to one of the two uses only


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types(dtype: type) -> None:
    weight = noise(8, 5).astype(dtype)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 8])],
        [helper.make_tensor_value_info("y", kind, ["N", 5])],
        [numpy_helper.from_array(weight, "w")],
    )
    layers, _ = find_layers(Model(helper.make_model(graph)), min_size=1)
    assert layers[0].dtype == dtype


def test_order_is_that_of_the_graph(find: Find) -> None:
    text = """g (float[N, 8] x) => (float[N, 8] y) {
        a = MatMul(x, last)  b = MatMul(a, first)  y = MatMul(b, middle) }"""
    layers, _ = find(text, {name: noise(8, 8) for name in ("first", "middle", "last")})
    assert list(layers) == ["last", "first", "middle"]


# --------------------------------------------------------------------------------------- bias and residual


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


# ------------------------------------------------------------------------------------------------- skips


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N, 8] x) => (float[N, 8] y) { y = Mul(x, w) }", "used by Mul, which is not a prunable"),
        ("g (float[N, 8] x) => (float[N, 8] y, float[8, 8] w) { y = MatMul(x, w) }", "is a graph output"),
        ("g (float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }", "no node uses it"),
        ("g (float[N, 8] x) => (float[8, 8] y) { y = MatMul(w, w) }", "both operands are constants"),
        ("g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) y = Gemm<transB=1>(a, w) }",
         "shared by MatMul(a) and Gemm(y) in different roles"),
        ("g (float[8, 8] x) => (float[8, 8] y) { a = MatMul(x, w) y = MatMul(w, a) }", "in different roles"),
        ("g (float[8, 8] x) => (float[8, 8] y) { a = MatMul(x, w) y = Gemm(x, a, w) }", "is input 2 of Gemm"),
        ("g (float[8, 8] x) => (float[8, 8] y) { y = Gemm<alpha=0.0>(x, w) }", "has no effect"),
        ("g (float[8, 8] x) => (float[8, 8] y) { y = Gemm(w, x) }", "is input 0 of Gemm"),
        ("g (int64[N] x) => (float[8, N] y) { y = Gather<axis=1>(w, x) }", "not as the rows of a table"),
        ("g (int64[N, 8] x) => (int64[N, 8] y, float[2, 8] z) { y = Identity(x) z = Gather(w, k) }",
         "gathered with constant indices"),
        ("""g (float[N, 8] x, bool c) => (float[N, 8] y) {
            y = If(c)<then_branch = t () => (float[N, 8] a) { a = MatMul(x, w) },
                      else_branch = e () => (float[N, 8] b) { b = Relu(x) }> }""",
         "read inside the subgraph of If(y)"),
        ("""g (float[N, 8] x, bool c) => (float[N, 8] y) {
            z = MatMul(x, w)
            y = If(c)<then_branch = t () => (float[N, 8] a) { a = MatMul(z, w) },
                      else_branch = e () => (float[N, 8] b) { b = Relu(x) }> }""",
         "read inside the subgraph of If(y)"),
    ],
)  # fmt: skip
def test_skips(find: Find, text: str, reason: str) -> None:
    layers, skips = find(text, {"w": noise(8, 8), "k": np.array([1, 2])})
    assert "w" not in layers
    assert reason in skips["w"].reason
    assert skips["w"].size == 64


def test_a_table_for_tokens_and_for_scores_is_left_alone(find: Find) -> None:
    text = "g (int64[N] ids) => (float[N, 50] y) { e = Gather(w, ids) y = Gemm<transB=1>(e, w) }"
    layers, skips = find(text, {"w": noise(50, 8)})
    assert not layers and "different roles" in skips["w"].reason


def test_lstm_weights_are_named(find: Find) -> None:
    text = "g (float[T, N, 4] x) => (float[T, 1, N, 5] y) { y = LSTM<hidden_size=5>(x, w, r) }"
    layers, skips = find(text, {"w": noise(1, 20, 4), "r": noise(1, 20, 5)})
    assert not layers
    assert {s.reason for s in skips.values()} == {"used by LSTM, which is not a prunable operator"}


def test_quantized_weights_are_named(find: Find) -> None:
    text = """g (float[N, 8] x) => (float[N, 5] y) {
        d = DequantizeLinear(w, scale)  y = MatMul(x, d) }"""
    weights = {"w": np.ones((8, 5), np.int8), "scale": np.array(0.1, np.float32)}
    layers, skips = find(text, weights)
    assert not layers and skips["w"].reason == "quantized"


def test_size_limit(find: Find) -> None:
    text = "g (float[N, 8] x) => (float[N, 5] y) { y = MatMul(x, w) }"
    layers, skips = find(text, {"w": noise(8, 5)}, min_size=41)
    assert not layers and skips["w"] == Skip("w", "MatMul(y)", 40, "too small: 40 elements, --min-size is 41")
    assert list(find(text, {"w": noise(8, 5)}, min_size=40)[0]) == ["w"]


def test_vectors_and_shapes_are_not_worth_a_line(find: Find) -> None:
    text = """g (float[N, 8] x) => (float[A, B] y) {
        a = MatMul(x, w)  b = Add(a, bias)  c = Mul(b, scale)  y = Reshape(c, shape) }"""
    weights = {"w": noise(8, 40), "bias": noise(1, 40), "scale": noise(40), "shape": np.array([40, -1])}
    layers, skips = find(text, weights)
    assert list(layers) == ["w"] and not skips


@pytest.mark.parametrize(
    ("globs", "kept", "reasons"),
    [
        ({}, {"enc_w", "head_w"}, {}),
        ({"exclude": ["head_*"]}, {"enc_w"}, {"head_w": "excluded by --exclude head_*"}),
        ({"exclude": ["first"]}, {"head_w"}, {"enc_w": "excluded by --exclude first"}),  # a node's name
        ({"exclude": ["*_w"]}, set(), dict.fromkeys(("enc_w", "head_w"), "excluded by --exclude *_w")),
        ({"include": ["enc*"]}, {"enc_w"}, {"head_w": "not matched by any --include"}),
        ({"include": ["*"], "exclude": ["ENC*"]}, {"enc_w", "head_w"}, {}),  # case matters
        ({"include": ["enc*", "sec*"], "exclude": ["e*"]}, {"head_w"}, {"enc_w": "excluded by --exclude e*"}),
    ],
)  # fmt: skip
def test_globs(find: Find, globs: dict[str, list[str]], kept: set[str], reasons: dict[str, str]) -> None:
    text = (
        "g (float[N, 8] x) => (float[N, 8] y) { [first] a = MatMul(x, enc_w) [second] y = MatMul(a, head_w) }"
    )
    layers, skips = find(text, {"enc_w": noise(8, 8), "head_w": noise(8, 8)}, **globs)
    assert set(layers) == kept
    assert {name: skip.reason for name, skip in skips.items()} == reasons


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_nan_in_a_weight(find: Find, value: float, dtype: type) -> None:
    weight = noise(8, 5).astype(dtype)
    weight[3, 2] = value
    kind = {np.float32: "float", np.float16: "float16", np.float64: "double"}[dtype]
    text = f"g ({kind}[N, 8] x) => ({kind}[N, 5] y) {{ [head] y = MatMul(x, w) }}"
    with pytest.raises(ModelError, match="weight 'w' of node 'head' holds NaN or infinite values") as caught:
        find(text, {"w": weight})
    assert caught.value.hint == "--exclude 'w' leaves it alone"
    assert not find(text, {"w": weight}, exclude=["w"])[0]


def test_large_doubles_are_finite(find: Find) -> None:
    text = "g (double[N, 8] x) => (double[N, 5] y) { y = MatMul(x, w) }"
    layers, _ = find(text, {"w": np.full((8, 5), 1e30)})
    assert list(layers) == ["w"]


def test_conv_that_computes_its_weight_is_no_layer(find: Find) -> None:
    """The weight goes through another node first: named, not touched."""
    text = "g (float[N, 8] x) => (float[N, 5] y) { t = Transpose<perm=[1, 0]>(w)  y = MatMul(x, t) }"
    layers, skips = find(text, {"w": noise(5, 8)})
    assert not layers and skips["w"].reason == "used by Transpose, which is not a prunable operator"


def test_another_domain_of_the_same_name() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain="mine")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(noise(8, 5), "w")],
    )
    layers, skips = find_layers(Model(helper.make_model(graph)), min_size=1)
    assert not layers and "not a prunable operator" in skips[0].reason


@pytest.mark.parametrize(
    ("end", "last"),
    [
        ("y = MatMul(h, w2)", {"w2"}),
        ("k = MatMul(h, w2) b = Add(k, c) y = Softmax(b)", {"w2"}),
        ("k = MatMul(h, w2) y = Add(c, k)", {"w2"}),
        ("k = MatMul(h, w2) y = Relu(k)", set()),
        ("k = MatMul(h, w2) y = Add(k, h)", set()),
    ],
)
def test_heads_make_the_answers(build_model: Build, end: str, last: set[str]) -> None:
    text = f"g (float[N, 8] x) => (float[N, 8] y) {{ a = MatMul(x, w1) h = Relu(a) {end} }}"
    weights = {"w1": np.eye(8, dtype=np.float32), "w2": np.eye(8, dtype=np.float32)}
    model = Model(build_model(text, weights | {"c": np.ones(8, np.float32)}))
    assert heads(model, find_layers(model, min_size=1)[0]) == last
