from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnxprune.calibration.hints import IdRange, channels, features, id_range
from onnxprune.model import Model

Build = Callable[..., onnx.ModelProto]
TABLE = {"t": np.zeros((50, 4), np.float32)}


@pytest.mark.parametrize(
    ("body", "low", "high", "exact"),
    [
        ("y = Gather(t, x)", 0, 49, True),
        ("a = Cast<to = 6>(x) b = Identity(a) y = Gather(t, b)", 0, 49, True),
        ("s = Constant<value_ints = [-1]>() a = Reshape(x, s) y = Gather(t, a)", 0, 49, True),
        ("c = Constant<value = int64 {2}>() a = Add(x, c) y = Gather(t, a)", 0, 47, True),
        ("c = Constant<value = int64 {2}>() a = Sub(x, c) y = Gather(t, a)", 2, 51, True),
        # Columns with their own offset into one table: the largest offset counts, as a bound only.
        ("c = Constant<value = int64[2] {0, 30}>() a = Add(x, c) y = Gather(t, a)", 0, 19, False),
        ("a, b = Split<axis = 1>(x) y = Gather(t, b)", 0, 49, False),
        ("u = Transpose<perm = [1, 0]>(t) y = Gather<axis = 0>(t, x)", 0, 49, True),
        ("y = Gather<axis = 1>(t, x)", 0, 3, True),
        ("y = Gather(t, x) z = Gather(small, x)", 0, 9, True),
        (
            "c = Constant<value = int64[5] {0, 1, 2, 3, 4}>() a = Unsqueeze(x, two) b = Equal(a, c) "
            "y = Cast<to = 1>(b)",
            0,
            4,
            False,
        ),
    ],
)
def test_range_of_token_ids(build_model: Build, body: str, low: int, high: int, exact: bool) -> None:
    text = f"g (int64[N, 2] x) => (float[?, ?, ?] y) {{ {body} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    weights = {**TABLE, "small": np.zeros((10, 4), np.float32), "two": np.array([2])}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    found = id_range(Model(proto), "x")
    assert found is not None
    assert (found.low, found.high, found.exact) == (low, high, exact)


@pytest.mark.parametrize(
    "body",
    [
        # The shape of the ids is looked up, not the ids.
        "s = Shape(x) c = Constant<value = int64 {0}>() z = Gather(s, c) y = Cast<to = 1>(x)",
        "y = Cast<to = 1>(x)",
        "c = Constant<value = int64[2] {3, 1}>() b = Equal(x, c) y = Cast<to = 1>(b)",
        "c = Constant<value = int64 {3}>() a = Mul(x, c) y = Gather(t, a)",  # not followed: no range claimed
        "k = Add(x, x) y = Gather(t, k)",
    ],
)
def test_no_range(body: str) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (int64[N, 2] x) => (float[?, ?, ?] y) {{ {body} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(TABLE["t"], "t"))
    assert id_range(Model(proto), "x") is None


def test_range_through_a_subgraph() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (int64[N, 2] x, bool c) => (float[?, ?, ?] y) {
        y = If (c) <
            then_branch = a () => (float[?, ?, ?] p) { p = Gather(t, x) },
            else_branch = b () => (float[?, ?, ?] q) { q = Gather(t, x) }
        > }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(TABLE["t"], "t"))
    assert id_range(Model(proto), "x") == IdRange(0, 49, "t")


def test_range_of_a_fused_embedding() -> None:
    names = ["ids", "segments", "words", "positions", "types", "gamma", "beta"]
    node = helper.make_node("EmbedLayerNormalization", names, ["y", "m"], domain="com.microsoft")
    tables = {"words": 100, "positions": 16, "types": 2}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, onnx.TensorProto.INT32, ["b", "s"]) for n in names[:2]],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros((r, 4), np.float32), n) for n, r in tables.items()],
    )
    model = Model(helper.make_model(graph))
    assert id_range(model, "ids") == IdRange(0, 99, "words")
    assert id_range(model, "segments") == IdRange(0, 1, "types")


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("y = Conv(x, w)", (-3, 5)),
        ("a = Sub(x, m) b = Relu(a) y = Conv(b, w)", (-3, 5)),
        ("a = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv(a, w)", (-1, 5)),
        ("y = Conv<group = 2>(x, w)", (-3, 10)),
        ("a = Reshape(x, s) y = Conv(a, w)", None),
    ],
)
def test_channels_of_the_first_convolution(body: str, wanted: tuple[int, int] | None) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"g (float[N, a, b, c] x, float[1] m, int64[4] s) => (float[?] y) {{ {body} }}"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((6, 5, 3, 3), np.float32), "w"))
    assert channels(Model(proto), "x") == wanted


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("y = MatMul(x, w)", 6),
        ("y = Gemm(x, w)", 6),
        ("y = Gemm<transB = 1>(x, w)", 5),
        ("a = Mul(x, x) y = MatMul(a, w)", 6),
        ("y = MatMul(w, x)", None),
    ],
)
def test_features_of_the_first_layer(body: str, wanted: int | None) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[N, d] x) => (float[?, ?] y) {{ {body} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((6, 5), np.float32), "w"))
    assert features(Model(proto), "x") == wanted
