"""The law of rows: W times the input rows is what ONNX Runtime computes, for every kind of layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.calibration.rows import input_rows, output_rows, output_shape, row_count
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def is_layer(weight: np.ndarray) -> bool:
    """Vectors and the smallest matrices are not looked at."""
    return weight.size >= 16 and sum(dim > 1 for dim in weight.shape) >= 2


def one_node(op: str, weight: np.ndarray, rank: int, slot: int = 1, **attributes: Any) -> ModelProto:
    inputs = ["x", "w"] if slot == 1 else ["w", "x"]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op, inputs, ["y"], **attributes)],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight, "w")],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )


def solve(proto: ModelProto, x: np.ndarray) -> tuple[Layer, np.ndarray, np.ndarray]:
    """Return the layer of "w", its matrix and the node's output."""
    model = Model(proto)
    (layer,), _ = find_layers(model, min_size=1)
    y = runtime.session(proto, threads=1).run(None, {"x": x})[0]
    return layer, layer.view.to_matrix(model.array("w")), y


def check(proto: ModelProto, x: np.ndarray) -> None:
    """The law itself, for all rows and for some of them."""
    layer, W, y = solve(proto, x)
    rows, outputs = input_rows(layer, x), output_rows(layer, y)
    assert output_shape(layer, x) == y.shape
    assert rows.dtype == outputs.dtype == np.float32
    assert rows.flags.c_contiguous
    assert rows.shape == (layer.groups, row_count(layer, x), layer.view.matrix[2])
    assert outputs.shape == (layer.groups, rows.shape[1], layer.view.matrix[1])
    product = layer.alpha * rows @ W.swapaxes(1, 2)
    np.testing.assert_allclose(product, outputs, rtol=1e-4, atol=1e-4)
    some = np.arange(0, rows.shape[1], 3)
    np.testing.assert_array_equal(input_rows(layer, x, some), rows[:, some])
    np.testing.assert_array_equal(output_rows(layer, y, some), outputs[:, some])


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ModelProto, np.ndarray]:
    rank = draw(st.integers(1, 3))
    axes = lambda low, high: st.lists(st.integers(low, high), min_size=rank, max_size=rank)  # noqa: E731
    groups, inputs, outputs = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)))
    kernel, strides, dilations = draw(axes(1, 3)), draw(axes(1, 3)), draw(axes(1, 2))
    auto = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    pads = draw(axes(0, 2)) + draw(axes(0, 2)) if auto == "NOTSET" else [0] * (2 * rank)
    size = draw(axes(1, 7))
    if auto.startswith("SAME"):
        dilations = [1] * rank  # ONNX Runtime refuses others
    else:
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        assume(all(size[a] + pads[a] + pads[a + rank] >= reach[a] for a in range(rank)))
    attributes: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations}
    attributes |= {"pads": pads} if auto == "NOTSET" else {"auto_pad": auto}
    weight = noise(groups * outputs, inputs, *kernel)
    assume(is_layer(weight))
    x = noise(draw(st.integers(1, 2)), groups * inputs, *size, seed=1)
    return one_node("Conv", weight, rank + 2, **attributes), x


@given(convolutions())
def test_convolutions(drawn: tuple[ModelProto, np.ndarray]) -> None:
    check(*drawn)


def test_depthwise_convolution_without_attributes() -> None:
    check(one_node("Conv", noise(6, 1, 3, 3), 4, group=6), noise(2, 6, 5, 5, seed=1))


@given(st.booleans(), st.booleans(), st.integers(1, 5), st.sampled_from([1.0, -0.5, 3.0]))
def test_gemm(trans_a: bool, trans_b: bool, rows: int, alpha: float) -> None:
    weight = noise(3, 6) if trans_b else noise(6, 3)
    x = noise(6, rows, seed=1) if trans_a else noise(rows, 6, seed=1)
    check(one_node("Gemm", weight, 2, transA=int(trans_a), transB=int(trans_b), alpha=alpha), x)


@st.composite
def matmuls(draw: st.DrawFn) -> tuple[ModelProto, np.ndarray]:
    """Batch axes of both operands that broadcast, the constant on either side, vectors too."""
    full = draw(st.lists(st.integers(1, 3), max_size=3))
    weight_batch, x_batch = (
        [draw(st.sampled_from([1, size])) for size in full[draw(st.integers(0, len(full))) :]]
        for _ in range(2)
    )
    slot = draw(st.sampled_from([0, 1]))
    inner, out, rows = draw(st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(1, 4)))
    weight = noise(*weight_batch, inner, out) if slot == 1 else noise(*weight_batch, out, inner)
    vector = not x_batch and draw(st.booleans())
    shape = [inner] if vector else [*x_batch, rows, inner] if slot == 1 else [*x_batch, inner, rows]
    assume(is_layer(weight))
    x = noise(*shape, seed=1)
    return one_node("MatMul", weight, x.ndim, slot), x


@given(matmuls())
@example((one_node("MatMul", noise(4, 4), 1, 0), noise(4, seed=1)))
@example((one_node("MatMul", noise(2, 4, 4), 1, 0), noise(4, seed=1)))
@example((one_node("MatMul", noise(2, 4, 4), 1, 1), noise(4, seed=1)))
@example((one_node("MatMul", noise(2, 1, 4, 5), 4), noise(2, 3, 2, 4, seed=1)))
@example((one_node("MatMul", noise(2, 1, 5, 4), 3, 0), noise(3, 4, 2, seed=1)))
def test_matmul(drawn: tuple[ModelProto, np.ndarray]) -> None:
    check(*drawn)


@pytest.mark.parametrize("x_shape", [(4,), (7, 4), (2, 7, 4), (2, 3, 7, 4), (2, 1, 3, 7, 4)])
def test_matmul_of_any_rank(x_shape: tuple[int, ...]) -> None:
    check(one_node("MatMul", noise(4, 5), len(x_shape)), noise(*x_shape, seed=1))


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[ModelProto, np.ndarray, dict[str, Any]]:
    rank = draw(st.integers(1, 2))
    axes = lambda low, high: st.lists(st.integers(low, high), min_size=rank, max_size=rank)  # noqa: E731
    groups, inputs, outputs = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    geometry = {"kernel": draw(axes(1, 3)), "strides": draw(axes(1, 3)), "dilations": draw(axes(1, 2))}
    weight = noise(groups * inputs, outputs, *geometry["kernel"])
    assume(is_layer(weight))
    x = noise(draw(st.integers(1, 2)), groups * inputs, *draw(axes(1, 4)), seed=1)
    attributes = {"group": groups, "strides": geometry["strides"], "dilations": geometry["dilations"]}
    return one_node("ConvTranspose", weight, rank + 2, **attributes), x, geometry


@given(transposed_convolutions())
def test_transposed_convolutions(drawn: tuple[ModelProto, np.ndarray, dict[str, Any]]) -> None:
    """Each row adds its products to a window of the output: scattered and summed they are ORT's output."""
    proto, x, geometry = drawn
    layer, W, y = solve(proto, x)
    rows = input_rows(layer, x)
    assert rows.shape == (layer.groups, row_count(layer, x), layer.view.matrix[2])
    products = (rows @ W.swapaxes(1, 2)).reshape(
        layer.groups, x.shape[0], *x.shape[2:], -1, *geometry["kernel"]
    )
    found = np.zeros_like(y).reshape(x.shape[0], layer.groups, -1, *y.shape[2:])
    for index in np.ndindex(*x.shape[2:], *geometry["kernel"]):
        at, tap = index[: x.ndim - 2], index[x.ndim - 2 :]
        place = tuple(
            p * s + k * d
            for p, s, k, d in zip(at, geometry["strides"], tap, geometry["dilations"], strict=True)
        )
        found[(..., *place)] += products[(slice(None), slice(None), *at, slice(None), *tap)].swapaxes(0, 1)
    np.testing.assert_allclose(found.reshape(y.shape), y, rtol=1e-4, atol=1e-4)
    some = np.arange(0, rows.shape[1], 3)
    np.testing.assert_array_equal(input_rows(layer, x, some), rows[:, some])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_become_float32(dtype: type) -> None:
    x = noise(2, 3, 5, 5, seed=1)
    layer, _, _ = solve(one_node("Conv", noise(4, 3, 3, 3), 4), x)
    rows = input_rows(layer, x.astype(dtype))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, input_rows(layer, x), atol=2e-3)


def test_no_rows() -> None:
    x = noise(0, 4)
    layer, _, _ = solve(one_node("MatMul", noise(4, 5), 2), x)
    assert input_rows(layer, x).shape == (1, 0, 4)
    assert row_count(layer, x) == 0
