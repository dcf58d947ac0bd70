from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.passes.shapes import Shapes, infer, observe

Build = Callable[..., onnx.ModelProto]
TEXT = """g (float[N, S, 8] x, float[N, 1, 8] p) => (float[N, S, 4] y) {
    h = MatMul(x, w)
    r = Relu(h)
    q = MatMul(p, w)
    b = Add(h, q)
    t = Transpose <perm = [1, 0, 2]> (r)
    u = Transpose <perm = [1, 0, 2]> (t)
    y = Add(b, u) }"""


@pytest.fixture
def model(build_model: Build) -> Model:
    return Model(build_model(TEXT, {"w": np.ones((8, 4), np.float32)}))


def test_inferred_shapes_keep_their_symbols(model: Model) -> None:
    shapes = Shapes(infer(model))
    assert shapes.dims("h") == ("N", "S", 4) and shapes.dims("t") == ("S", "N", 4)
    assert shapes.rank("q") == 3 and shapes.rank("nowhere") is None
    value = shapes.value_info("h", 4, -1)
    assert value is not None
    assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == ["N", "S", 4]


def test_equal_by_symbols(model: Model) -> None:
    shapes = Shapes(infer(model))
    assert shapes.equal("h", "r") and shapes.equal("h", "u")
    assert not shapes.equal("h", "q") and not shapes.equal("h", "x") and not shapes.equal("h", "nowhere")


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ((2, 5, 4), (2, 5, 4), True),
        ((2, 5, 4), (2, 1, 4), False),
        ((2, 5, 4), (5, 4), False),
        ((1, 5, 4), (1, 5, 4), False),  # a 1 may be broadcast on another input
    ],
)
def test_equal_by_what_was_seen(a: tuple[int, ...], b: tuple[int, ...], equal: bool) -> None:
    assert Shapes({}, [{"a": a, "b": b}]).equal("a", "b") is equal


def test_a_wrong_number_of_axes(model: Model) -> None:
    """Exporters write scalars for what they do not know."""
    types = {"a": onnx.helper.make_tensor_value_info("a", 1, [])}
    assert Shapes(types).dims("a") == () and Shapes(types).value_info("a", 4, 1) is None
    assert Shapes(types, [{"a": (2, 3, 4)}]).dims("a") == (None, None, None)


def test_several_runs_count_together() -> None:
    both = [{"a": (1, 5), "b": (1, 5)}, {"a": (3, 1), "b": (3, 1)}]
    assert Shapes({}, both).equal("a", "b")
    assert not Shapes({}, [*both, {"a": (3, 2), "b": (3, 1)}]).equal("a", "b")


def test_fixed_dimensions_need_not_be_seen_larger(model: Model) -> None:
    types = infer(model)
    assert Shapes(types).dims("h") == ("N", "S", 4)
    one = {name: types["h"] for name in ("a", "b")}
    for value in one.values():
        value.type.tensor_type.shape.dim[0].dim_value = 1
    one["b"] = onnx.helper.make_tensor_value_info("b", 1, [1, "T", 4])
    assert Shapes(one, [{"a": (1, 5, 4), "b": (1, 5, 4)}]).equal("a", "b")
    assert not Shapes(one, [{"a": (1, 1, 4), "b": (1, 1, 4)}]).equal("a", "b")


def test_observe(model: Model) -> None:
    feed = {"x": np.ones((2, 3, 8), np.float32), "p": np.ones((2, 1, 8), np.float32)}
    before = model.proto.SerializeToString()
    (seen,) = observe(model, ["h", "y", "x", "h"], [feed])
    assert seen == {"h": (2, 3, 4), "y": (2, 3, 4), "x": (2, 3, 8)}
    assert model.proto.SerializeToString() == before


def test_shapes_that_follow_from_computed_values(build_model: Build) -> None:
    text = """g (float[N, 3, 8, 8] x) => (float[N, 3, 10, 10] y) {
        one = Constant <value_ints = [0, 0, 1, 1]> ()
        pads = Concat <axis = 0> (one, one)
        y = Pad(x, pads) }"""
    model = Model(build_model(text))
    model.graph.output[0].type.tensor_type.shape.dim[2].ClearField("dim_value")
    model.graph.output[0].type.tensor_type.shape.dim[3].ClearField("dim_value")
    assert Shapes(infer(model)).dims("y") == ("N", 3, 10, 10)


def test_large_constants_are_not_copied(build_model: Build) -> None:
    text = "g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }"
    model = Model(build_model(text, {"w": np.ones((64, 64), np.float32)}))
    model.graph.initializer[0].raw_data = b""  # nobody looks
    assert Shapes(infer(model)).dims("y") == ("N", 64)


def test_before_ir_version_4_initializers_are_inputs_too(build_model: Build) -> None:
    """A constant that is small enough to be copied gives the shape of what is computed from it."""
    proto = build_model("g (float[N, 8] x) => (float[N, 8] y) { h = Add(x, b) y = Relu(h) }",
                        {"b": np.ones(8, np.float32)}, opset=7)  # fmt: skip
    proto.ir_version = 3
    proto.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [8]))
    onnx.checker.check_model(proto, full_check=True)
    assert Shapes(infer(Model(proto))).dims("h") == ("N", 8)


def test_a_model_that_cannot_be_inferred(build_model: Build) -> None:
    model = Model(build_model("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }",
                              {"w": np.ones((4, 4), np.float32)}))  # fmt: skip
    model.graph.node[0].op_type = "NoSuchOp"
    assert Shapes(infer(model)).dims("x") == ("N", 4)
