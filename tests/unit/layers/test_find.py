"""What is pruned, and what is left alone with which reason."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.layers import Bias, Skip, find_layers
from onnxprune.model import Model
from tests.unit.layers.conftest import Build, Find, noise


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


def test_weights_that_a_subgraph_holds_itself_are_named() -> None:
    text = """g (float[N, 8] x, bool c) => (float[N, 8] y) {
        [choice] y = If(c)<then_branch = t () => (float[N, 8] a) <float[8, 8] v> { a = MatMul(x, v) },
            else_branch = e () => (float[N, 8] b) {
                d = If(c)<then_branch = i () => (float[N, 8] j) { u = Constant<value = float[8, 8] {}>()
                                                               j = MatMul(x, u) },
                          else_branch = k () => (float[N, 8] l) { l = Relu(x) }>
                b = Relu(d) }> }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    then, other = (attribute.g for attribute in model.graph.node[0].attribute)
    inner = other.node[0].attribute[0].g
    del then.initializer[:]
    then.initializer.append(numpy_helper.from_array(noise(8, 8), "v"))
    inner.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(noise(8, 8), "u"))
    layers, skips = find_layers(Model(model), min_size=1)
    assert not layers
    reason = "inside the subgraph of choice"
    assert skips == (Skip("v", "choice", 64, reason), Skip("u", "choice", 64, reason))


def test_weights_of_other_operators_are_named(find: Find) -> None:
    text = 'g (float[4, 4] x) => (float[4, 4] y) { y = Einsum<equation="ij,jk->ik">(x, w) }'
    layers, skips = find(text, {"w": noise(4, 4)})
    assert not layers
    assert {s.reason for s in skips.values()} == {"used by Einsum, which is not a prunable operator"}


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


@pytest.mark.parametrize(("value", "reason"), [(-np.inf, "a table with infinite values"), (np.nan, None)])
def test_a_table_may_hold_infinity(find: Find, value: float, reason: str | None) -> None:
    """Transformers on graphs add scores by distance, -inf for atoms of other molecules."""
    table = noise(9, 32)
    table[0] = value
    text = "g (int64[N] x) => (float[N, 32] y) { [bias] y = Gather(w, x) }"
    if reason is None:
        with pytest.raises(ModelError, match="weight 'w' of node 'bias' holds NaN"):
            find(text, {"w": table})
        return
    layers, skips = find(text, {"w": table})
    assert not layers and reason in str(skips)


def test_large_doubles_are_finite(find: Find) -> None:
    text = "g (double[N, 8] x) => (double[N, 5] y) { y = MatMul(x, w) }"
    layers, _ = find(text, {"w": np.full((8, 5), 1e30)})
    assert list(layers) == ["w"]


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


TABLE = "g (int64[N] i, float[M, 6] x) => (float[N, 6] h, float[M, 8] y) { h = Gather(w, i) %s }"


@pytest.mark.parametrize(
    "head",
    [
        "t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)",
        "t = Transpose(w) y = MatMul(x, t)",
        "t = Transpose(w) y = Gemm(x, t)",
        "y = Gemm<transB = 1>(x, w)",
        "t = Transpose(w) a = MatMul(x, t) b = Gemm<transB = 1>(x, w) y = Add(a, b)",
    ],
)
def test_a_table_that_is_the_last_weight_too_is_a_table(find: Find, head: str) -> None:
    layers, skips = find(TABLE % head, {"w": noise(8, 6)})
    assert not skips
    assert layers["w"].kind == "embedding" and layers["w"].view.matrix == (1, 8, 6)
    assert [site.output for site in layers["w"].sites] == ["h"]


@pytest.mark.parametrize(
    "use",
    [
        "y = Gemm(q, w)",  # its columns are the output features
        "t = Transpose(w) y = MatMul(t, q)",
        "t = Transpose(w) u = Exp(t) y = MatMul(x, u)",
        "t = Transpose<perm = [0, 1]>(w) y = MatMul(q, t)",
        "t = Transpose(w) y = Gemm<transB = 1>(q, t)",
        "y = Add(w, w)",
    ],
)
def test_a_table_that_is_used_otherwise_stays(find: Find, use: str) -> None:
    inputs = "int64[N] i, float[M, K] q, float[M, 6] x"
    text = f"g ({inputs}) => (float[N, 6] h, float[A, B] y) {{ h = Gather(w, i) {use} }}"
    layers, skips = find(text, {"w": noise(8, 6)})
    assert not layers and skips["w"].reason
