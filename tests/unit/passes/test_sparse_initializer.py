from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.passes.sparse_initializer import to_sparse_initializers
from onnxprune.passes.unpack import unpack

CASES: dict[str, tuple[str, tuple[int, ...]]] = {
    "matmul": ("g (float[N, 24] x) => (float[N, 32] y) { y = MatMul(x, w) }", (24, 32)),
    "left matmul": ("g (float[32, N] x) => (float[24, N] y) { y = MatMul(w, x) }", (24, 32)),
    "gemm": ("g (float[N, 24] x) => (float[N, 32] y) { y = Gemm<transB=1>(x, w) }", (32, 24)),
    "conv": ("g (float[N, 8, 9, 9] x) => (float[N, 16, 7, 7] y) { y = Conv(x, w) }", (16, 8, 3, 3)),
    "transposed conv": (
        "g (float[N, 8, 5, 5] x) => (float[N, 4, 7, 7] y) { y = ConvTranspose(x, w) }",
        (8, 4, 3, 3),
    ),
    "gather": ("g (int64[N] x) => (float[N, 16] y) { y = Gather(w, x) }", (64, 16)),
    "tied": (
        "g (float[N, 32] x) => (float[N, 32] y) { a = MatMul(x, w) b = Transpose(w) y = MatMul(a, b) }",
        (32, 64),
    ),
    "subgraph": (
        """g (float[N, 24] x) => (float[N, 32] y) {
           s = ReduceSum<keepdims=0>(x) z = Sub(s, s) c = Cast<to=9>(z)
           y = If (c) <then_branch = a () => (float[N, 32] p) { p = MatMul(x, w) },
                       else_branch = b () => (float[N, 32] q) { r = MatMul(x, w) q = Relu(r) }> }""",
        (24, 32),
    ),
}


def feed(model: Model) -> dict[str, Any]:
    value = model.graph.input[0]
    shape = [dim.dim_value or 5 for dim in value.type.tensor_type.shape.dim]
    rng = np.random.default_rng(1)
    integers = value.type.tensor_type.elem_type == TensorProto.INT64
    return {"x": rng.integers(0, 16, shape) if integers else rng.standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("constant", [False, True])
def test_checker_and_onnx_runtime_accept_it(
    case: str, constant: bool, build_model: Any, pruned: Any, run_model: Any, folded_ops: Any
) -> None:
    text, shape = CASES[case]
    dense = Model(build_model(text, {"w": pruned(*shape)}))
    if constant:
        node = helper.make_node("Constant", [], ["w"], name="c", value=dense.graph.initializer[0])
        del dense.graph.initializer[:]
        dense.graph.node.insert(0, node)
        dense.reindex()
    sparse = dense.copy()
    report = to_sparse_initializers(sparse, ["w"])
    assert report.weights[0].form == "sparse-initializer"
    assert len(sparse.graph.sparse_initializer) == (not constant)
    assert "w" not in sparse.index.tensors
    # onnx's shape inference gives a sparse initializer a sparse type, which no op takes; ORT makes it dense
    onnx.checker.check_model(sparse.proto, full_check=constant)
    assert np.array_equal(run_model(sparse.proto, feed(dense))[0], run_model(dense.proto, feed(dense))[0])
    assert folded_ops(sparse.proto) == folded_ops(dense.proto)
    assert unpack(sparse) == {"w": "sparse-initializer"}
    assert sparse.array("w").tobytes() == dense.array("w").tobytes()
    assert [n.op_type for n in sparse.graph.node] == [n.op_type for n in dense.graph.node]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_types(dtype: Any, build_model: Any, pruned: Any, run_model: Any) -> None:
    text = "g (float[N, 24] x) => (float[N, 32] y) { f = Cast<to=1>(w) y = MatMul(x, f) }"
    dense = Model(build_model(text, {"w": pruned(24, 32, dtype=dtype)}))
    sparse = dense.copy()
    to_sparse_initializers(sparse, ["w"])
    onnx.checker.check_model(sparse.proto)
    assert np.array_equal(run_model(sparse.proto, feed(dense))[0], run_model(dense.proto, feed(dense))[0])
    unpack(sparse)
    assert sparse.array("w").tobytes() == dense.array("w").tobytes()


def test_report_says_when_it_grew(build_model: Any) -> None:
    text = "g (float[N, 10] x) => (float[N, 10] y) { a = MatMul(x, few) y = MatMul(a, many) }"
    few, many = np.zeros((10, 10), np.float32), np.ones((10, 10), np.float32)
    few[:2] = 1
    model = Model(build_model(text, {"few": few, "many": many}))
    report = to_sparse_initializers(model, ["few", "many"])
    small, large = report.weights
    assert (small.dense_bytes, small.stored_bytes, small.reason) == (400, 240, "")
    assert large.stored_bytes == 1200 and "larger than dense" in large.reason


def test_all_zeros_and_no_zeros_load(build_model: Any, run_model: Any) -> None:
    text = "g (float[N, 10] x) => (float[N, 10] y) { a = MatMul(x, none) b = MatMul(x, all) y = Add(a, b) }"
    model = Model(
        build_model(text, {"none": np.zeros((10, 10), np.float32), "all": np.eye(10, dtype=np.float32)})
    )
    to_sparse_initializers(model, ["none", "all"])
    onnx.checker.check_model(model.proto)
    x = np.ones((2, 10), np.float32)
    assert np.array_equal(run_model(model.proto, {"x": x})[0], x)
    unpack(model)
    assert not model.array("none").any()


class TestRefusals:
    def reason(self, model: Model, name: str = "w") -> str:
        before = model.to_bytes()
        entry = to_sparse_initializers(model, [name]).weights[0]
        assert entry.form == "dense" and entry.stored_bytes == entry.dense_bytes
        assert model.to_bytes() == before
        return entry.reason

    def test_overridable(self, build_model: Any, pruned: Any) -> None:
        model = Model(build_model(CASES["matmul"][0], {"w": pruned(24, 32)}))
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [24, 32]))
        assert "override" in self.reason(model)

    def test_integers(self, build_model: Any) -> None:
        text = "g (int64[N] x) => (int64[N] y) { y = Add(x, w) }"
        assert "INT64" in self.reason(Model(build_model(text, {"w": np.zeros(1, np.int64)})))

    def test_scalar(self, build_model: Any) -> None:
        text = "g (float[N] x) => (float[N] y) { y = Add(x, w) }"
        assert "scalar" in self.reason(Model(build_model(text, {"w": np.array(0, np.float32)})))

    def test_constant_of_opset_10(self, build_model: Any, pruned: Any) -> None:
        proto = build_model(CASES["matmul"][0], {"w": pruned(24, 32)}, opset=10)
        node = helper.make_node("Constant", [], ["w"], value=proto.graph.initializer[0])
        del proto.graph.initializer[:]
        proto.graph.node.insert(0, node)
        assert "opset 10" in self.reason(Model(proto))

    def test_unknown_weight(self, build_model: Any, pruned: Any) -> None:
        with pytest.raises(ModelError, match="'nope'"):
            to_sparse_initializers(Model(build_model(CASES["matmul"][0], {"w": pruned(24, 32)})), ["nope"])


def test_ir_version_3(build_model: Any, pruned: Any, run_model: Any) -> None:
    proto = build_model(CASES["matmul"][0], {"w": pruned(24, 32)}, opset=9)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [24, 32]))
    proto.ir_version = 3
    model = Model(proto)
    wanted = run_model(proto, feed(model))[0]
    to_sparse_initializers(model, ["w"])
    onnx.checker.check_model(model.proto)
    assert model.proto.ir_version == 5 and [v.name for v in model.graph.input] == ["x"]
    assert np.array_equal(run_model(model.proto, feed(model))[0], wanted)


def test_a_constant_keeps_its_name_and_doc(build_model: Any, pruned: Any) -> None:
    proto = build_model(CASES["matmul"][0], {"w": pruned(24, 32)})
    value = numpy_helper.from_array(pruned(24, 32), "inner")
    node = helper.make_node("Constant", [], ["w"], name="weights", doc_string="trained", value=value)
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, node)
    model = Model(proto)
    to_sparse_initializers(model, ["w"])
    assert (model.graph.node[0].name, model.graph.node[0].doc_string) == ("weights", "trained")
    assert [a.name for a in model.graph.node[0].attribute] == ["sparse_value"]
