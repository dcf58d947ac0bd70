from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.errors import ModelError
from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN
from onnxprune.storage.functions import set_attributes
from onnxprune.storage.reference import ACTIVATIONS, convolve, normalise, run

RNG = np.random.default_rng(0)


def array(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("weight", "settings"),
    [
        ((6, 4, 3, 3), {}),
        ((6, 4, 3, 2), {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ((8, 2, 3, 3), {"group": 2, "dilations": [2, 1], "pads": [2, 2, 2, 2]}),
        ((4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
        ((6, 4, 3), {"strides": [2], "pads": [1, 2]}),
    ],
)
def test_convolution_is_that_of_onnx(weight: tuple[int, ...], settings: dict[str, Any]) -> None:
    space = len(weight) - 2
    given: dict[str, Any] = {
        "strides": [1] * space, "dilations": [1] * space, "pads": [0] * 2 * space, "group": 1, **settings
    }  # fmt: skip
    x, w = array(2, 4, *[9, 8][:space]), array(*weight)
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=list(weight[2:]), **given)
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [value("x", 1, None)], [value("y", 1, None)],
                              [numpy_helper.from_array(w, "w")])  # fmt: skip
    wanted = ReferenceEvaluator(helper.make_model(graph)).run(None, {"x": x})[0]
    found = convolve(x.astype(np.float64), w.astype(np.float64), given)
    assert found.shape == wanted.shape and np.allclose(found, wanted, atol=1e-4)


def test_a_whole_op_by_hand() -> None:
    form = FORMS["gaps4"]
    weight = np.array([[1, 0], [0, 2], [3, 0]], np.float32)
    packed = form.encode(weight, values="same")
    node = helper.make_node("SparseGap4MatMulAddClip", ["x", "s", "v", "b", "r"], ["y"], domain=DOMAIN,
                            low=-1.0, high=10.0)  # fmt: skip
    set_attributes(node, form, packed, 17)
    x, b, r = (np.array(v, np.float32) for v in ([[1, 1, 1]], [10, -10], [[1, 1]]))
    found = run(node, [x, *packed.tensors, b, r])
    assert found.dtype == np.float32 and found.tolist() == [[10.0, -1.0]]


def test_normalisation() -> None:
    y = normalise(np.array([[1.0, 3.0], [5.0, 5.0]]), 1e-5)
    assert np.allclose(y, [[-1, 1], [0, 0]], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("Relu", -2.0, 0.0),
        ("Gelu", 1.0, 0.5 * (1 + math.erf(2**-0.5))),
        ("GeluTanh", 1.0, 0.8411919906082768),
        ("Silu", 1.0, 1 / (1 + math.exp(-1))),
        ("HardSwish", 1.0, 4 / 6),
        ("HardSwish", -3.5, 0.0),
        ("HardSwish", 3.5, 3.5),
    ],
)
def test_activations(name: str, x: float, y: float) -> None:
    assert ACTIVATIONS[name](np.array([x]))[0] == pytest.approx(y)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_large_values(name: str) -> None:
    with np.errstate(over="raise", invalid="raise"):
        found = ACTIVATIONS[name](np.array([-1e4, 1e4]))
    assert found.tolist() == [0, 1e4]


def test_other_ops() -> None:
    with pytest.raises(ModelError, match="has no kernel"):
        run(onnx.helper.make_node("BitmapMatMul", ["x"], ["y"], domain=DOMAIN), [])
