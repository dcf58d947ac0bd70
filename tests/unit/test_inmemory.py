from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune import model as model_module
from onnxprune.errors import ModelError
from onnxprune.inmemory import LARGE, is_large, session_of, without_values
from onnxprune.model import Model

Build = Callable[..., onnx.ModelProto]
TEXT = "g (float[N, 80] x) => (float[N, 80] y) { h = MatMul(x, w) y = Add(h, b) }"


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w": (80, 80), "b": (80,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_model_beyond_the_limit_of_protobuf(build_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    held = weights()
    model = Model(build_model(TEXT, held))
    assert held["w"].size >= LARGE
    monkeypatch.setattr(model_module, "MAX_PROTO_BYTES", 4 * LARGE)
    with pytest.raises(ModelError):
        model.to_bytes()
    x = np.ones((2, 80), np.float32)
    (y,) = session_of(model, threads=1).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ held["w"] + held["b"], rtol=1e-4, atol=1e-4)
    assert model.array("w").tobytes() == held["w"].tobytes()


def test_weights_that_callers_may_replace(build_model: Build) -> None:
    held = weights()
    text = TEXT.replace("float[N, 80] x", "float[N, 80] x, float[80, 80] w")
    session = session_of(Model(build_model(text, held)), threads=1)
    x = np.ones((2, 80), np.float32)
    (given,) = session.run(None, {"x": x, "w": np.zeros((80, 80), np.float32)})
    np.testing.assert_array_equal(given, np.broadcast_to(held["b"], (2, 80)))
    (default,) = session.run(None, {"x": x})
    np.testing.assert_allclose(default, x @ held["w"] + held["b"], rtol=1e-4, atol=1e-4)


def test_weights_that_nothing_reads(build_model: Build) -> None:
    held = {**weights(), "unused": np.ones((80, 80), np.float32), "given": np.ones((80, 80), np.float32)}
    text = TEXT.replace("float[N, 80] y)", "float[N, 80] y, float[80, 80] given)")
    session = session_of(Model(build_model(text, held)), threads=1)
    _, given = session.run(None, {"x": np.ones((2, 80), np.float32)})
    np.testing.assert_array_equal(given, held["given"])


@pytest.mark.parametrize(("dtype", "large"), [("float32", True), ("float16", True), ("int64", False)])
def test_which_are_large(dtype: str, large: bool) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones(LARGE, dtype), "t")
    assert is_large(tensor) is large
    assert not is_large(onnx.numpy_helper.from_array(np.ones(LARGE - 1, dtype), "t"))
    empty = without_values(tensor)
    assert (empty.name, empty.data_type, list(empty.dims)) == ("t", tensor.data_type, [LARGE])
    assert not empty.raw_data


def test_the_name_in_messages(build_model: Build) -> None:
    proto = build_model(TEXT, weights())
    proto.graph.node[0].op_type = "NoSuchOp"
    with pytest.raises(ModelError, match="the pruned model"):
        session_of(Model(proto), name="the pruned model")
