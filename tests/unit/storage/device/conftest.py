"""Weights that a layout can hold, and a check that every layout passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.storage.device.functions import DeviceOp, attributes
from onnxprune.storage.device.layout import Layout
from onnxprune.storage.form import Array, onnx_type
from tests.unit.storage.device.random_weights import pruned

SHAPES = [(16, 128), (1, 1), (5, 8), (40, 200), (130, 333), (64, 192)]
DTYPES = [np.float16, ml_dtypes.bfloat16]


def model_of(layout: Layout, weight: Array, activation: str = "", opset: int = 17, **limits: float) -> Any:
    """A model of one node ``Y = act(X W + B)``, its bias and its function."""
    rows, cols = weight.shape
    op, kind = DeviceOp(layout.prefix, activation), onnx_type(weight.dtype)
    node = helper.make_node(
        op.name, ["X", *layout.inputs, "B"], ["Y"], "the node", domain="onnxprune", **limits
    )
    node.attribute.extend(attributes(layout, rows, cols, kind, False))
    bias = np.random.default_rng(9).standard_normal(rows).astype(weight.dtype)
    tensors = [
        numpy_helper.from_array(a, n) for a, n in zip(layout.encode(weight), layout.inputs, strict=True)
    ]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("X", kind, ["M", cols])],
        [helper.make_tensor_value_info("Y", kind, ["M", rows])],
        [*tensors, numpy_helper.from_array(bias, "B")],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("onnxprune", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    model.functions.append(op.function(opset))
    onnx.checker.check_model(model)
    return model, bias


@pytest.fixture(scope="session")
def weight_for() -> Callable[..., Array]:
    """Return ``weight(layout name, (N, K), dtype=float16, seed=0)``."""
    return lambda name, shape, dtype=np.float16, seed=0: pruned(name, shape, dtype, seed)


@pytest.fixture(scope="session")
def device_model() -> Callable[..., Any]:
    """Return ``model(layout, weight, activation="", opset=17, **limits)``: the model and its bias."""
    return model_of


@pytest.fixture
def check_layout(tmp_path: Path) -> Callable[[Layout], None]:
    """Return a check: any shape and both types come back, and ONNX Runtime folds the function to the same."""
    import onnxruntime

    def check(layout: Layout) -> None:
        for shape in SHAPES:
            for dtype in DTYPES:
                weight = pruned(layout.name, shape, dtype)
                if layout.refusal(weight):
                    assert min(shape) < 64, layout.refusal(weight)
                    continue
                tensors = layout.encode(weight)
                found = layout.decode(tensors, shape, onnx_type(weight.dtype), "w")
                assert found.dtype == weight.dtype and found.shape == shape
                wide, limit = weight.astype(np.float64), 0.0 if layout.exact else 0.02
                assert np.abs(found.astype(np.float64) - wide).max() <= limit
                if dtype is np.float16:
                    folded(layout, weight, found)

    def folded(layout: Layout, weight: Array, decoded: Array) -> None:
        model, bias = model_of(layout, weight)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        left = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
        # On a CPU, ONNX Runtime computes in float32: the casts are of activations, not of the decoding.
        assert set(left) <= {"Cast", "MatMul", "Add", "Gemm", "FusedGemm"} and len(left) <= 5, left
        x = np.random.default_rng(1).standard_normal((3, weight.shape[1])).astype(np.float16)
        wanted = x.astype(np.float64) @ decoded.astype(np.float64).T + bias
        error = np.abs(session.run(None, {"X": x})[0] - wanted).max() / max(np.abs(wanted).max(), 1e-3)
        assert error < 2e-3

    return check


FLOAT16 = TensorProto.FLOAT16
