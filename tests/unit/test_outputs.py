"""Classes, features or exact values: what an output is taken for, and why."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from scipy.special import log_softmax, softmax

from onnxprune.model import Model
from onnxprune.outputs import EXACT, FEATURES, LOGITS, NONE, PROBABILITIES, is_float, output_kind

RNG = np.random.default_rng(0)


def parse(text: str, weights: dict | None = None, opset: int = 17) -> onnx.ModelProto:
    """Outputs have no shape here, as many exporters leave them."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(a, name) for name, a in (weights or {}).items()
    )
    return model


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "weights", "shape", "kind", "axis"),
    [
        pytest.param("y = Gemm(x, w, b)", {"w": (8, 10), "b": (10,)}, (4, 8), LOGITS, 1, id="gemm"),
        pytest.param(
            "m = MatMul(x, w) y = Add(b, m)", {"w": (8, 10), "b": (10,)}, (4, 8), LOGITS, 1, id="matmul+bias"
        ),
        pytest.param("y = MatMul(x, w)", {"w": (8, 64)}, (4, 8), FEATURES, None, id="width of an embedding"),
        pytest.param("y = MatMul(x, w)", {"w": (8, 1)}, (4, 8), FEATURES, None, id="regression"),
        pytest.param("m = MatMul(x, w) y = Tanh(m)", {"w": (8, 10)}, (4, 8), FEATURES, None, id="tanh"),
        pytest.param(
            "m = MatMul(x, w) y = Sigmoid(m)", {"w": (8, 10)}, (4, 8), FEATURES, None, id="multi-label"
        ),
        pytest.param(
            "m = MatMul(x, w) y = Softmax<axis=-1>(m)", {"w": (8, 64)}, (4, 8), PROBABILITIES, 1, id="softmax"
        ),
        pytest.param(
            "m = MatMul(x, w) y = LogSoftmax(m)", {"w": (8, 64)}, (4, 8), LOGITS, 1, id="log-softmax"
        ),
        pytest.param("y = MatMul(x, w)", {"w": (8, 5000)}, (2, 3, 8), LOGITS, 2, id="vocabulary"),
        pytest.param("y = MatMul(x, w)", {"w": (8, 9)}, (2, 3, 8), FEATURES, None, id="sequence, small"),
        pytest.param("y = LayerNormalization(x, s)", {"s": (10,)}, (4, 10), FEATURES, None, id="layer norm"),
        pytest.param(
            "m = MatMul(x, w) y = Add(m, x)", {"w": (10, 10)}, (4, 10), FEATURES, None, id="residual"
        ),
        pytest.param(
            "c = Conv(x, w) p = GlobalAveragePool(c) y = Flatten(p)",
            {"w": (10, 3, 1, 1)},
            (2, 3, 4, 4),
            LOGITS,
            1,
            id="pooled convolution",
        ),
        pytest.param("y = Conv(x, w)", {"w": (21, 3, 1, 1)}, (2, 3, 4, 4), FEATURES, None, id="image"),
        pytest.param(
            "c = Conv(x, w) y = Softmax<axis=1>(c)",
            {"w": (21, 3, 1, 1)},
            (2, 3, 4, 4),
            PROBABILITIES,
            1,
            id="segmentation",
        ),
        pytest.param(
            "s = Softmax<axis=-1>(x) y = Transpose<perm=[0, 2, 1]>(s)",
            {},
            (2, 3, 8),
            PROBABILITIES,
            1,
            id="softmax, then transposed",
        ),
        pytest.param(
            "g = Gather<axis=1>(x, i) m = MatMul(g, w) y = Identity(m)",
            {"w": (8, 2), "i": ()},
            (2, 3, 8),
            LOGITS,
            1,
            id="first token",
        ),
    ],
)
def test_from_the_graph(run_model, body, weights, shape, kind, axis) -> None:
    arrays = {k: noise(*s) if k != "i" else np.array(0, np.int64) for k, s in weights.items()}
    dims = ", ".join(["N", *map(str, shape[1:])])
    proto = parse(f"g (float[{dims}] x) => (float[] y) {{ {body} }}", arrays)
    value = run_model(proto, {"x": noise(*shape)})[0]
    found = output_kind("y", value, Model(proto))
    assert found.family == kind, found.reason
    if axis is not None:
        assert found.axis % value.ndim == axis
        assert found.classes
    assert found.reason


def test_product_of_two_activations_is_no_classifier(run_model) -> None:
    proto = parse("g (float[N, 4] x) => (float[] y) { t = Transpose(x) y = MatMul(x, t) }")
    value = run_model(proto, {"x": noise(3, 4)})[0]
    assert output_kind("y", value, Model(proto)).family == FEATURES


def test_bias_behind_a_cast_is_still_a_bias(run_model) -> None:
    proto = parse(
        "g (float[N, 4] x) => (float[] y) { m = MatMul(x, w) c = Cast<to=1>(b) y = Add(m, c) }",
        {"w": noise(4, 10), "b": np.zeros(10, np.float16)},
    )
    assert output_kind("y", noise(3, 10), Model(proto)).family == LOGITS


def test_old_softmax_flattens(run_model) -> None:
    """Before opset 13 the axis says where to flatten: [N, 2, 3] at axis 1 is one distribution of 6 values."""
    proto = parse("g (float[N, 2, 3] x) => (float[] y) { y = Softmax<axis=1>(x) }", opset=11)
    value = run_model(proto, {"x": noise(4, 2, 3)})[0]
    assert output_kind("y", value, Model(proto)).family == FEATURES


@pytest.mark.parametrize(
    ("name", "shape", "kind", "axis"),
    [
        ("logits", (4, 32), LOGITS, 1),
        ("pred_logits", (2, 100, 92), LOGITS, 2),
        ("startLogits", (2, 50), LOGITS, 1),
        ("logits", (2, 150, 8, 8), LOGITS, 1),
        ("logits", (4, 1), FEATURES, None),
        ("logits", (4,), FEATURES, None),
        ("last_hidden_state", (2, 5, 384), FEATURES, None),
        ("output", (4, 10), FEATURES, None),
        ("logistics", (4, 10), FEATURES, None),
    ],
)
def test_by_name_without_a_graph(name: str, shape: tuple[int, ...], kind: str, axis: int | None) -> None:
    found = output_kind(name, noise(*shape))
    assert found.family == kind, found.reason
    assert axis is None or found.axis == axis


def test_feature_names_outrank_the_shape() -> None:
    body = "pred_boxes = MatMul(x, w) scores = MatMul(x, w)"
    text = f"g (float[N, 8] x) => (float[] pred_boxes, float[] scores) {{ {body} }}"
    model = Model(parse(text, {"w": noise(8, 4)}))
    assert output_kind("pred_boxes", noise(3, 4), model).family == FEATURES
    assert output_kind("scores", noise(3, 4), model).family == LOGITS


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_sum_to_one(dtype: type) -> None:
    value = softmax(noise(6, 1000).astype(np.float64), axis=1).astype(dtype)
    assert output_kind("y", value).family == PROBABILITIES
    assert output_kind("y", (2 * value).astype(dtype)).family == FEATURES
    logs = log_softmax(noise(6, 50).astype(np.float64), axis=1).astype(dtype)
    assert output_kind("y", logs).family == LOGITS


def test_sum_to_one_over_other_axes() -> None:
    value = softmax(noise(2, 21, 4, 4), axis=1)
    assert output_kind("y", value).axis == 1
    assert output_kind("y", np.moveaxis(value, 1, 2)).axis == 2


def test_negative_values_are_no_probabilities() -> None:
    value = np.array([[1.5, -0.5], [2.0, -1.0]], np.float32)
    assert output_kind("y", value).family == FEATURES


@pytest.mark.parametrize(
    ("value", "family"),
    [
        (np.zeros((2, 3), np.int64), EXACT),
        (np.zeros((2, 3), bool), EXACT),
        (np.array(["a"], dtype=object), EXACT),
        ([np.zeros(2)], NONE),
        ({"a": 1.0}, NONE),
        (None, NONE),
        (np.ones((), np.float32), FEATURES),
        (np.zeros((0, 10), np.float32), FEATURES),
        (np.full((2, 10), np.nan, np.float32), FEATURES),
    ],
)
def test_everything_else(value: object, family: str) -> None:
    found = output_kind("y", value)
    assert found.family == family
    assert not found.classes


def test_bfloat16_is_a_float() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert is_float(np.dtype(ml_dtypes.bfloat16))
    assert not is_float(np.dtype(np.int8))
    assert not is_float(np.dtype(object))


def test_walk_ends_in_graphs_of_any_depth() -> None:
    chain = " ".join(f"v{i + 1} = Identity(v{i})" for i in range(100))
    model = Model(parse(f"g (float[N, 10] v0) => (float[] v100) {{ {chain} }}"))
    assert output_kind("v100", noise(2, 10), model).family == FEATURES
    assert output_kind("v3", noise(2, 10), model).family == FEATURES  # ends at an input


def test_axes_that_the_model_declares_may_hold_parts() -> None:
    scales = np.array([200, 100, 0.01, 0.02], np.float32)[:, None]
    value = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32) * scales
    for dims, cuts in (("N, 4, L", (2,)), ("N, C, L", ())):
        proto = parse(f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Relu(x) }}", {})
        found = output_kind("y", value, Model(proto))
        assert (found.family, found.cuts) == (FEATURES, cuts)
        assert found.parts(value.shape) == (
            [(slice(None), slice(0, 2)), (slice(None), slice(2, 4))] if cuts else [()]
        )
    assert output_kind("y", value).cuts == (2,) and "different scales" in output_kind("y", value).reason


def test_parts_know_how_large_they_were() -> None:
    scales = np.array([200, 100, 0.01, 0.02], np.float32)[:, None]
    value = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32) * scales
    found = output_kind("y", value)
    assert found.squares == pytest.approx([np.square(value[:, :2]).mean(), np.square(value[:, 2:]).mean()])
