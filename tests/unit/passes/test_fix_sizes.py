"""Sizes that a model declares decide what an If runs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune import runtime
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.passes.fix_input import fix_inputs
from onnxprune.passes.fix_sizes import fix_sizes

# As PyTorch writes a cell with its states in one tensor: are there any?
TEXT = """g (float[N, 8] x, float[{rows}, N, 8] state, int64 rate) => (float[N, 8] y) {{
    s = Shape(state) n = Gather(s, {index}) c = Cast<to = 9>(n)
    y = If (c) <then_branch = a () => (float[N, 8] p) {{ p = MatMul(x, w) }},
                else_branch = b () => (float[N, 8] q) {{ q = Neg(x) }}> }}"""


def model(rows: str = "2", index: str = "first") -> Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> ' + TEXT.format(rows=rows, index=index)
    )
    rng = np.random.default_rng(0)
    for name, array in {
        "w": rng.standard_normal((8, 8)).astype(np.float32),
        "first": np.array(0),
        "third": np.array(-1),
        "second": np.array(1),
    }.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Model(proto)


def run(proto: onnx.ModelProto) -> np.ndarray:
    rng = np.random.default_rng(1)
    feed = {
        "x": rng.standard_normal((3, 8)).astype(np.float32),
        "state": rng.standard_normal((2, 3, 8)).astype(np.float32),
        "rate": np.array(5),
    }
    return np.asarray(runtime.session(proto, threads=1).run(None, feed)[0])


@pytest.mark.parametrize("index", ["first", "third"])
def test_a_declared_size_decides(index: str) -> None:
    dense = model(index=index)
    assert not find_layers(dense, min_size=1)[0]
    fixed = dense.copy()
    assert fix_inputs(fixed, {"rate": 5}) == ["If(y)"]
    assert [node.op_type for node in fixed.graph.node] == ["MatMul"]
    assert np.array_equal(run(fixed.proto), run(dense.proto))
    assert [layer.name for layer in find_layers(fixed, min_size=1)[0]] == ["w"]


@pytest.mark.parametrize(("rows", "index"), [("M", "first"), ("2", "second"), ("2", "rate")])
def test_free_sizes_decide_nothing(rows: str, index: str) -> None:
    found = model(rows, index)
    before = found.to_bytes()
    assert fix_sizes(found) == 0
    assert found.to_bytes() == before


def test_the_constant_holds_the_size() -> None:
    found = model()
    assert fix_sizes(found) == 1
    assert found.array("n") == 2 and found.array("n").shape == ()
    assert [node.op_type for node in found.graph.node] == ["Cast", "If"]


def test_an_index_that_callers_may_replace_decides_nothing() -> None:
    found = model()
    found.proto.graph.input.append(onnx.helper.make_tensor_value_info("first", onnx.TensorProto.INT64, []))
    found.reindex()
    assert fix_sizes(found) == 0
