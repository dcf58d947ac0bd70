from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.passes.device_ops import rewrite_device
from onnxprune.passes.device_products import device_matrix, find_device_products
from onnxprune.passes.unpack import unpack
from onnxprune.storage.device import LAYOUTS

TWO = """g (float[B, 64] x) => (float[B, 24] z) {
    a = MatMul(x, w)
    h = Add(a, b)
    r = Relu(h)
    z = Gemm<transB=1>(r, v, c)
}"""


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {"w": rng.standard_normal((64, 40)), "v": rng.standard_normal((24, 40))}
    for array in made.values():
        array[rng.random(array.shape) < 0.8] = 0
    made |= {"b": rng.standard_normal(40), "c": rng.standard_normal(24)}
    return {name: array.astype(np.float32) for name, array in made.items()}


@pytest.fixture
def two(build_model: Callable[..., onnx.ModelProto], weights: dict[str, np.ndarray]) -> Model:
    return Model(build_model(TWO, weights))


def types(model: Model) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_rewritten_model_runs_and_comes_back(
    two: Model, weights: dict[str, np.ndarray], run_model: Callable[..., Any]
) -> None:
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    (wanted,) = run_model(two.proto, {"x": x})
    rewrite_device(two, {"w": LAYOUTS["bitmap-tile"], "v": LAYOUTS["delta"]})
    assert types(two) == ["Cast", "BitmapTileMatMulRelu", "Cast", "Cast", "DeltaMatMul", "Cast"]
    assert {f.name for f in two.proto.functions} == {"BitmapTileMatMulRelu", "DeltaMatMul"}
    onnx.checker.check_model(two.proto)
    (found,) = run_model(two.proto, {"x": x})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=2e-2 * np.abs(wanted).max())

    assert unpack(two) == {"w": "packed", "v": "packed"}
    assert types(two) == ["Cast", "MatMul", "Add", "Relu", "Cast", "Cast", "Gemm", "Cast"]
    assert not two.proto.functions and [o.domain for o in two.proto.opset_import] == [""]
    for name in ("w", "v"):
        np.testing.assert_array_equal(two.array(name), weights[name].astype(np.float16))
    np.testing.assert_array_equal(run_model(two.proto, {"x": x})[0], found)


def test_one_cast_for_all_readers(build_model: Callable[..., onnx.ModelProto]) -> None:
    rng = np.random.default_rng(0)
    weights = {
        n: (rng.standard_normal((32, 16)) * (rng.random((32, 16)) < 0.3)).astype(np.float32) for n in "pq"
    }
    text = "g (float[B, 32] x) => (float[B, 16] z) { y = Neg(x) "
    text += "a = MatMul(y, p) b = MatMul(y, q) z = Sub(a, b) }"
    model = Model(build_model(text, weights))
    rewrite_device(model, dict.fromkeys("pq", LAYOUTS["bitmap-tile"]))
    assert types(model) == ["Neg", "Cast", "BitmapTileMatMul", "Cast", "BitmapTileMatMul", "Cast", "Sub"]
    assert sum(name.startswith(("p_no_bias", "q_no_bias")) for name in model.index.tensors) == 2
    unpack(model)
    assert types(model) == ["Neg", "Cast", "MatMul", "Cast", "MatMul", "Cast", "Sub"]
    assert set(model.index.tensors) == {"p", "q"}


def test_sixteen_bit_models_need_no_cast(build_model: Callable[..., onnx.ModelProto]) -> None:
    weight = np.zeros((32, 16), np.float16)
    weight[::4] = 1
    text = "g (float16[B, 32] x) => (float16[B, 16] z) { z = MatMul(x, p) }"
    model = Model(build_model(text, {"p": weight}))
    rewrite_device(model, {"p": LAYOUTS["nm-tile"]})
    assert types(model) == ["NMTileMatMul"]


CONV = """g (float[B, 32, 5, W] x) => (float[B, 16, 5, W] z) {
    a = Conv(x, p, b)
    z = Relu(a)
}"""


@pytest.mark.parametrize("wide", [True, False])
def test_convolutions_run_and_come_back(
    build_model: Callable[..., onnx.ModelProto], run_model: Callable[..., Any], wide: bool
) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((16, 32, 1, 1)) * (rng.random((16, 32, 1, 1)) < 0.3)).astype(np.float16)
    weights = {"p": weight, "b": rng.standard_normal(16).astype(np.float16)}
    x = rng.standard_normal((2, 32, 5, 3)).astype(np.float16)
    text = CONV if wide else CONV.replace("float[", "float16[")
    if wide:
        weights, x = {name: a.astype(np.float32) for name, a in weights.items()}, x.astype(np.float32)
    model = Model(build_model(text, weights))
    model.graph.node[0].name = "the convolution"
    (wanted,) = run_model(model.proto, {"x": x})
    found, refusals = find_device_products(model)
    assert (found["p"].space, found["p"].activation, found["p"].bias) == (2, "Relu", "b") and not refusals
    matrix = device_matrix(model, found["p"])
    assert matrix is not None and matrix.shape == (16, 32)
    rewrite_device(model, {"p": LAYOUTS["bitmap-tile"]})
    casts = ["Cast"] * wide
    assert types(model) == [*casts, "BitmapTileConvRelu", *casts]
    onnx.checker.check_model(model.proto)
    (switched,) = run_model(model.proto, {"x": x})
    np.testing.assert_allclose(switched, wanted, rtol=5e-3, atol=5e-3)
    assert unpack(model) == {"p": "packed"}
    assert types(model) == [*casts, "Conv", "Relu", *casts]
    assert next(node for node in model.graph.node if node.op_type == "Conv").name == "the convolution"
    np.testing.assert_array_equal(model.array("p"), weight)
    np.testing.assert_array_equal(run_model(model.proto, {"x": x})[0], switched)


def test_a_convolution_without_bias_comes_back_without(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = "g (float16[B, 32, L] x) => (float16[B, 16, L] z) { z = Conv(x, p) }"
    model = Model(build_model(text, {"p": np.eye(16, 32, dtype=np.float16)[:, :, None]}))
    rewrite_device(model, {"p": LAYOUTS["nm-tile"]})
    assert types(model) == ["NMTileConv"]
    unpack(model)
    assert list(model.graph.node[0].input) == ["x", "p"] and model.array("p").shape == (16, 32, 1)
