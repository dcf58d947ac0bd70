from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.inliner
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN

# name: (graph text, {weight: shape}, ops expected of our domain, without the form's prefix)
GRAPHS: dict[str, tuple[str, dict[str, tuple[int, ...]], list[str]]] = {
    "matmul": (
        "g (float[N, 24] x) => (float[N, 32] y) { y = MatMul(x, w) }",
        {"w": (24, 32)},
        ["MatMul"],
    ),
    "matmul, weight on the left": (
        "g (float[32, N] x) => (float[24, N] y) { y = MatMul(w, x) }",
        {"w": (24, 32)},
        ["LeftMatMul"],
    ),
    "batched matmul": (
        "g (float[3, N, 24] x) => (float[3, N, 16] y) { y = MatMul(x, w) }",
        {"w": (3, 24, 16)},
        ["MatMul"],
    ),
    "gemm": (
        "g (float[N, 24] x) => (float[N, 32] y) { y = Gemm<transB=1, alpha=0.5>(x, w) }",
        {"w": (32, 24)},
        ["Gemm"],
    ),
    "gemm with bias": (
        "g (float[24, N] x) => (float[N, 32] y) { y = Gemm<transA=1, beta=2.0>(x, w, c) }",
        {"w": (24, 32), "c": (32,)},
        ["GemmBias"],
    ),
    "gemm, weight on the left": (
        "g (float[24, N] x) => (float[32, N] y) { y = Gemm(w, x) }",
        {"w": (32, 24)},
        ["Decode"],
    ),
    "conv": (
        "g (float[N, 8, 9, 9] x) => (float[N, 16, 5, 5] y) { y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w) }",
        {"w": (16, 8, 3, 3)},
        ["Conv"],
    ),
    "grouped conv with bias": (
        'g (float[N, 8, 9] x) => (float[N, 16, 9] y) { y = Conv<group=2, auto_pad="SAME_UPPER">(x, w, b) }',
        {"w": (16, 4, 8), "b": (16,)},
        ["ConvBias"],
    ),
    "conv and batch normalization": (
        "g (float[N, 8, 9, 9] x) => (float[N, 16, 7, 7] y) "
        "{ h = Conv(x, w) n = BatchNormalization(h, s, b, m, v) y = Relu(n) }",
        {"w": (16, 8, 3, 3), "s": (16,), "b": (16,), "m": (16,), "v": (16,)},
        ["Conv"],
    ),
    "embedding table": (
        "g (int64[N] i) => (float[N, 16] y) { y = Gather(w, i) }",
        {"w": (64, 16)},
        ["Decode"],
    ),
    "tied: table and head": (
        "g (int64[N] i) => (float[N, 64] y) { e = Gather(w, i) t = Transpose(w) y = MatMul(e, t) }",
        {"w": (64, 16)},
        ["Decode"],
    ),
    "transposed conv": (
        "g (float[N, 8, 5, 5] x) => (float[N, 4, 7, 7] y) { y = ConvTranspose(x, w) }",
        {"w": (8, 4, 3, 3)},
        ["Decode"],
    ),
    "not a multiple of 8": (
        "g (float[N, 25] x) => (float[N, 31] y) { y = MatMul(x, w) }",
        {"w": (25, 31)},
        ["DecodeRagged"],
    ),
    "both factors": (
        "g (float[24] x) => (float[24, 32] y) { p = MatMul(a, w) q = Unsqueeze(x, k) y = Add(p, q) }",
        {"a": (24, 40), "w": (40, 32)},
        ["Decode", "LeftMatMul"],
    ),
}


def as_model(case: str, build_model: Callable[..., onnx.ModelProto], pruned: Callable[..., Any]) -> Model:
    text, shapes, _ = GRAPHS[case]
    weights = {name: pruned(*shape, seed=index) for index, (name, shape) in enumerate(shapes.items())}
    weights |= {name: np.abs(array) + 1 for name, array in weights.items() if name in "sv"}  # scale, variance
    weights |= {"k": np.array([1], np.int64)} if "Unsqueeze" in text else {}
    return Model(build_model(text, weights))


def feeds(model: onnx.ModelProto) -> dict[str, Any]:
    rng, found = np.random.default_rng(1), {}
    for value in model.graph.input:
        shape = [dim.dim_value or 5 for dim in value.type.tensor_type.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        integers = value.type.tensor_type.elem_type == TensorProto.INT64
        found[value.name] = (
            rng.integers(0, 16, shape) if integers else rng.standard_normal(shape).astype(kind)
        )
    return found


def ours(model: Model) -> list[str]:
    return sorted(node.op_type for node in model.graph.node if node.domain == DOMAIN)


def check(proto: onnx.ModelProto) -> None:
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


def big(model: Model) -> list[str]:
    return [name for name, tensor in model.index.tensors.items() if np.prod(tensor.dims) >= 256]


def expected(case: str, form: str) -> list[str]:
    suffixes = [suffix if form == "bitmap" else suffix.removesuffix("Ragged") for suffix in GRAPHS[case][2]]
    if form != "bitmap" and case == "not a multiple of 8":
        suffixes = ["MatMul"]
    return sorted(FORMS[form].prefix + suffix for suffix in suffixes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", GRAPHS)
def test_onnx_runtime_folds_it_to_the_dense_graph(
    case: str, form: str, build_model: Any, pruned: Any, folded_ops: Any, run_model: Any
) -> None:
    dense = as_model(case, build_model, pruned)
    packed = dense.copy()
    report = pack(packed, big(dense), form=form)
    assert ours(packed) == expected(case, form)
    assert all(entry.form == "packed" and not entry.reason for entry in report.weights)
    check(packed.proto)
    assert folded_ops(packed.proto) == folded_ops(dense.proto)
    assert not any(name.startswith("onnxprune.") for name in folded_ops(packed.proto))
    feed = feeds(dense.proto)
    for a, b in zip(run_model(dense.proto, feed), run_model(packed.proto, feed), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["matmul", "conv", "not a multiple of 8", "embedding table"])
def test_weights_are_bit_equal_after_folding(
    case: str, form: str, build_model: Any, pruned: Any, folded: Any
) -> None:
    dense = as_model(case, build_model, pruned)
    array = dense.array("w").copy()
    array.reshape(-1)[[3, 4, 9]] = [np.float32("nan"), -np.inf, 1e-42]
    dense.set_array("w", array)
    wanted = array
    pack(dense, ["w"], form=form)
    found = [numpy_helper.to_array(t) for t in folded(dense.proto).initializer]
    assert any(a.dtype == wanted.dtype and a.size == wanted.size and _bits(a) == _bits(wanted) for a in found)


def _bits(array: Any) -> bytes:
    return np.sort(array, axis=None).tobytes()  # ONNX Runtime blocks convolution weights: any order


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ["grouped conv with bias", "tied: table and head", "not a multiple of 8"])
def test_it_runs_without_optimisation_and_inlined_by_onnx(
    case: str, form: str, build_model: Any, pruned: Any, run_model: Any
) -> None:
    model = as_model(case, build_model, pruned)
    feed = feeds(model.proto)
    wanted = runtime.session(model.proto, optimize=False).run(None, feed)
    pack(model, big(model), form=form)
    for a, b in zip(wanted, runtime.session(model.proto, optimize=False).run(None, feed), strict=True):
        assert np.array_equal(a, b)
    inlined = onnx.inliner.inline_local_functions(model.proto)
    assert not any(node.domain == DOMAIN for node in inlined.graph.node)
    for a, b in zip(wanted, run_model(inlined, feed), strict=True):
        assert np.allclose(a, b, rtol=1e-6, atol=1e-5)


def test_default_domain_by_its_long_name(build_model: Any, pruned: Any, folded_ops: Any) -> None:
    model = as_model("matmul", build_model, pruned)
    model.proto.opset_import[0].domain = "ai.onnx"
    pack(model, ["w"])
    check(model.proto)
    assert folded_ops(model.proto) == {".MatMul": 1}


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 18, 21, 23])
@pytest.mark.parametrize("values", ["same", "fp16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_opset_from_7(
    opset: int, values: str, form: str, build_model: Any, pruned: Any, folded_ops: Any, run_model: Any
) -> None:
    text = """g (float[N, 24] x, int64[N] i) => (float[N, 32] y, float[N, 31] z) {
        h = MatMul(x, w) g = Gather(t, i) y = Add(h, g) z = MatMul(x, r) }"""
    weights = {"w": pruned(24, 32), "t": pruned(64, 32), "r": pruned(24, 31)}
    dense = Model(build_model(text, weights, opset=opset))
    packed = dense.copy()
    report = pack(packed, ["w", "t", "r"], values=values, form=form)
    if opset < FORMS[form].min_opset:
        assert {entry.form for entry in report.weights} == {"dense"}
        assert packed.to_bytes() == dense.to_bytes()
        return
    assert {entry.form for entry in report.weights} == {"packed"}
    check(packed.proto)
    assert packed.opset == opset
    assert folded_ops(packed.proto) == folded_ops(dense.proto)
    feed = feeds(dense.proto)
    for a, b in zip(run_model(dense.proto, feed), run_model(packed.proto, feed), strict=True):
        assert np.array_equal(a, b) if values == "same" else np.allclose(a, b, atol=0.02)


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_old_opsets_have_a_form_by_default(
    opset: int, build_model: Any, pruned: Any, folded_ops: Any, run_model: Any
) -> None:
    """Rows of 128 bytes, exactly full, one byte more and several of them; special values too."""
    shapes = {"w0": (32, 32), "w1": (32, 33), "w2": (33, 300), "w3": (300, 1024)}
    text = """g (float[N, 32] x) => (float[N, 1024] y, float[N, 32] z) {
        a = MatMul(x, w0) b = MatMul(a, w1) c = MatMul(b, w2) y = MatMul(c, w3) z = Add(x, w4) }"""
    weights = {name: pruned(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    weights["w4"] = pruned(1, 32 * 32).reshape(-1)[: 32 * 20].reshape(20, 32)
    weights["w4"][0, :4] = [np.nan, -np.inf, 1e-42, -0.0]
    dense = Model(build_model(text.replace("float[N, 32] x", "float[20, 32] x"), weights, opset=opset))
    packed = dense.copy()
    report = pack(packed, list(weights))
    assert [entry.form for entry in report.weights] == ["packed"] * 5
    check(packed.proto)
    assert len(packed.to_bytes()) < 0.4 * len(dense.to_bytes())
    assert folded_ops(packed.proto) == folded_ops(dense.proto)
    feed = {"x": np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)}
    for a, b in zip(run_model(dense.proto, feed), run_model(packed.proto, feed), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_old_opsets_decode_in_another_runtime(opset: int, build_model: Any, pruned: Any) -> None:
    """onnx's reference evaluator knows nothing of ONNX Runtime; of tensors as attributes neither."""
    text = "g (float[N, 24] x) => (float[N, 64] y, float[N, 31] z) { y = MatMul(x, w) z = MatMul(x, r) }"
    dense = Model(build_model(text, {"w": pruned(24, 64), "r": pruned(24, 31)}, opset=opset))
    packed = dense.copy()
    pack(packed, ["w", "r"], form="bitmap")
    inlined = onnx.inliner.inline_local_functions(packed.proto)
    assert not inlined.functions
    feed = feeds(dense.proto)
    wanted, found = (ReferenceEvaluator(proto).run(None, feed) for proto in (dense.proto, inlined))
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_opset_6_stays_dense(build_model: Any, pruned: Any) -> None:
    model = Model(build_model(GRAPHS["matmul"][0], {"w": pruned(24, 32)}, opset=6))
    before = model.to_bytes()
    report = pack(model, ["w"])
    assert report.weights[0].form == "dense"
    assert report.weights[0].reason == "opset 6 has no op to decode it, opset 7 is the first"
    assert model.to_bytes() == before


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(
    dtype: Any, build_model: Any, pruned: Any, folded_ops: Any, run_model: Any
) -> None:
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    text = f"g ({kind}[N, 24] x) => ({kind}[N, 32] y) {{ y = MatMul(x, w) }}"
    dense = Model(build_model(text, {"w": pruned(24, 32, dtype=dtype)}))
    packed = dense.copy()
    pack(packed, ["w"], form="bitmap")
    check(packed.proto)
    assert packed.index.tensors["w"].data_type == dense.index.tensors["w"].data_type
    assert folded_ops(packed.proto) == folded_ops(dense.proto)
    feed = feeds(dense.proto)
    assert np.array_equal(run_model(dense.proto, feed)[0], run_model(packed.proto, feed)[0])


def test_bfloat16(build_model: Any, pruned: Any, folded_ops: Any, run_model: Any) -> None:
    text = "g (float[N, 24] x) => (float[N, 32] y) { f = Cast<to=1>(w) y = MatMul(x, f) }"
    dense = Model(build_model(text, {"w": pruned(24, 32, dtype=ml_dtypes.bfloat16)}))
    packed = dense.copy()
    pack(packed, ["w"], form="bitmap")
    check(packed.proto)
    assert ours(packed) == ["BitmapDecode"]
    assert folded_ops(packed.proto) == folded_ops(dense.proto)
    feed = feeds(dense.proto)
    assert np.array_equal(run_model(dense.proto, feed)[0], run_model(packed.proto, feed)[0])


class TestConstantNodes:
    TEXT = """g (float[N, 24] x) => (float[N, 32] y) {{ {} }}"""

    def model(self, build_model: Any, weight: Any, use: str) -> Model:
        proto = build_model(self.TEXT.format("a = Relu(x) " + use), {"w": weight})
        del proto.graph.initializer[:]
        node = helper.make_node(
            "Constant", [], ["w"], name="the weight", value=numpy_helper.from_array(weight, "w")
        )
        proto.graph.node.insert(1, node)
        return Model(proto)

    @pytest.mark.parametrize(
        ("use", "op"),
        [
            ("y = MatMul(a, w)", "BitmapMatMul"),
            ("b = MatMul(a, w) c = MatMul(x, w) y = Add(b, c)", "BitmapDecode"),
        ],
    )
    def test_stays_a_constant(
        self, use: str, op: str, build_model: Any, pruned: Any, folded_ops: Any, run_model: Any
    ) -> None:
        dense = self.model(build_model, pruned(24, 32), use)
        packed = dense.copy()
        pack(packed, ["w"], form="bitmap")
        check(packed.proto)
        assert ours(packed) == [op] and not packed.graph.initializer
        assert [n.name for n in packed.graph.node if n.op_type == "Constant"] == ["w_mask", "the weight"]
        assert folded_ops(packed.proto) == folded_ops(dense.proto)
        feed = feeds(dense.proto)
        assert np.array_equal(run_model(dense.proto, feed)[0], run_model(packed.proto, feed)[0])

    def test_before_opset_9_the_mask_is_an_initializer(
        self, build_model: Any, pruned: Any, folded_ops: Any, run_model: Any
    ) -> None:
        """Constant held floating point only."""
        dense = self.model(build_model, pruned(24, 32), "y = MatMul(a, w)")
        dense.proto.opset_import[0].version = 8
        packed = dense.copy()
        pack(packed, ["w"])
        check(packed.proto)
        assert [t.name for t in packed.graph.initializer] == ["w_mask"]
        assert folded_ops(packed.proto) == folded_ops(dense.proto)
        feed = feeds(dense.proto)
        assert np.array_equal(run_model(dense.proto, feed)[0], run_model(packed.proto, feed)[0])


class TestTheNodeKeeps:
    def test_everything_else(self, build_model: Any, pruned: Any) -> None:
        model = as_model("grouped conv with bias", build_model, pruned)
        node = model.graph.node[0]
        node.name, node.doc_string = "conv1", "the first"
        node.metadata_props.add(key="pkg", value="torch")
        model.graph.initializer[0].doc_string = "trained"
        attributes = {a.name: a.SerializeToString() for a in node.attribute}
        model.reindex()
        pack(model, ["w"], form="bitmap")
        node = model.graph.node[0]
        assert (node.name, node.doc_string, node.metadata_props[0].value) == ("conv1", "the first", "torch")
        assert list(node.input) == ["x", "w_mask", "w", "b"] and list(node.output) == ["y"]
        assert {a.name: a.SerializeToString() for a in node.attribute if a.name in attributes} == attributes
        assert {a.name for a in node.attribute} - set(attributes) == {"shape", "dtype"}
        assert model.index.tensors["w"].doc_string == "trained"

    def test_explicitly_missing_bias_is_dropped(self, build_model: Any, pruned: Any) -> None:
        model = as_model("conv", build_model, pruned)
        model.graph.node[0].input.append("")
        model.reindex()
        pack(model, ["w"], form="bitmap")
        assert list(model.graph.node[0].input) == ["x", "w_mask", "w"]
        assert ours(model) == ["BitmapConv"]

    def test_unknown_attribute_means_decode(self, build_model: Any, pruned: Any) -> None:
        model = as_model("matmul", build_model, pruned)
        model.graph.node[0].attribute.append(helper.make_attribute("vendor", 1))
        pack(model, ["w"], form="bitmap")
        assert ours(model) == ["BitmapDecode"]

    def test_other_domains_mean_decode(self, build_model: Any, pruned: Any, folded_ops: Any) -> None:
        model = as_model("matmul", build_model, pruned)
        model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "FusedMatMul"
        model.proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        pack(model, ["w"], form="bitmap")
        assert ours(model) == ["BitmapDecode"]
        assert folded_ops(model.proto) == {"com.microsoft.FusedMatMul": 1}


class TestWhereTheNameMatters:
    def test_weight_is_a_graph_output(self, build_model: Any, pruned: Any, run_model: Any) -> None:
        weight = pruned(24, 32)
        model = Model(
            build_model(
                "g (float[N, 24] x) => (float[N, 32] y, float[24, 32] w) { y = MatMul(x, w) }", {"w": weight}
            )
        )
        feed = feeds(model.proto)
        wanted = run_model(model.proto, feed)
        pack(model, ["w"], form="bitmap")
        check(model.proto)
        assert ours(model) == ["BitmapDecode"]
        for a, b in zip(wanted, run_model(model.proto, feed), strict=True):
            assert np.array_equal(a, b)

    def test_weight_is_read_by_a_subgraph(
        self, build_model: Any, pruned: Any, folded: Any, run_model: Any
    ) -> None:
        text = """g (float[N, 24] x, bool c) => (float[N, 32] y) { y = If (c) <
            then_branch = a () => (float[N, 32] p) { p = MatMul(x, w) },
            else_branch = b () => (float[N, 32] q) { r = MatMul(x, w) q = Relu(r) }> }"""
        dense = Model(build_model(text, {"w": pruned(24, 32)}))
        packed = dense.copy()
        pack(packed, ["w"], form="bitmap")
        check(packed.proto)
        assert ours(packed) == ["BitmapDecode"] and packed.graph.node[0].output[0] == "w"
        assert [node.op_type for node in folded(packed.proto).node] == ["If"]
        for choice in (True, False):
            feed = {"x": feeds(dense.proto)["x"], "c": np.array(choice)}
            assert np.array_equal(run_model(dense.proto, feed)[0], run_model(packed.proto, feed)[0])

    def test_new_names_clash_with_none_not_even_in_subgraphs(self, build_model: Any, pruned: Any) -> None:
        text = """g (float[N, 24] x, bool c) => (float[N, 32] y) {
            w_mask = MatMul(x, w)
            y = If (c) <then_branch = a () => (float[N, 32] p) { w_mask_1 = Relu(w_mask) p = Neg(w_mask_1) },
                        else_branch = b () => (float[N, 32] q) { q = Identity(w_mask) }> }"""
        model = Model(build_model(text, {"w": pruned(24, 32)}))
        pack(model, ["w"], form="bitmap")
        assert list(model.graph.node[0].input) == ["x", "w_mask_2", "w"]
        check(model.proto)

    def test_type_information_of_the_weight_goes(self, build_model: Any, pruned: Any) -> None:
        model = as_model("matmul", build_model, pruned)
        model.graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [24, 32]))
        model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
        pack(model, ["w"], form="bitmap")
        assert [value.name for value in model.graph.value_info] == ["y"]
        check(model.proto)


class TestVersions:
    def test_ir_version_is_raised_only_when_something_was_packed(self, build_model: Any, pruned: Any) -> None:
        model = as_model("matmul", build_model, pruned)
        model.proto.ir_version = 7
        model.set_array("w", np.ones((24, 32), np.float32))
        pack(model, ["w"], form="bitmap")
        assert model.proto.ir_version == 7 and not model.proto.functions
        model.set_array("w", pruned(24, 32))
        pack(model, ["w"], form="bitmap")
        assert model.proto.ir_version == 8
        assert [(o.domain, o.version) for o in model.proto.opset_import] == [("", 17), (DOMAIN, 1)]

    @pytest.mark.parametrize("opset", [7, 11])
    @pytest.mark.parametrize("tied", [False, True])
    def test_ir_version_3_lists_no_initializers_as_inputs_any_more(
        self, tied: bool, opset: int, build_model: Any, pruned: Any, folded_ops: Any
    ) -> None:
        text = "y = Add(h, b)" if not tied else "i = MatMul(x, w) j = Add(h, i) y = Add(j, b)"
        proto = build_model(
            f"g (float[N, 24] x) => (float[N, 32] y) {{ h = MatMul(x, w) {text} }}",
            {"w": pruned(24, 32), "b": pruned(32)},
            opset=opset,
        )
        for tensor in proto.graph.initializer:
            proto.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        proto.ir_version = 3
        model = Model(proto)
        wanted = folded_ops(model.proto)
        pack(model, ["w"], form="bitmap")
        check(model.proto)
        assert [value.name for value in model.graph.input] == ["x"]
        assert folded_ops(model.proto) == wanted

    def test_overridable_weights_stay_dense(self, build_model: Any, pruned: Any) -> None:
        model = as_model("matmul", build_model, pruned)
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [24, 32]))
        report = pack(model, ["w"], form="bitmap")
        assert report.weights[0].form == "dense" and "override" in report.weights[0].reason
        assert not model.proto.functions

    def test_newer_domain_is_refused(self, build_model: Any, pruned: Any) -> None:
        model = as_model("matmul", build_model, pruned)
        model.proto.opset_import.append(helper.make_opsetid(DOMAIN, 2))
        with pytest.raises(ModelError, match="version 2"):
            pack(model, ["w"], form="bitmap")


class TestFunctions:
    def test_one_per_op_and_others_stay(self, build_model: Any, pruned: Any, run_model: Any) -> None:
        proto = build_model(
            "g (float[N, 24] x) => (float[N, 24] y) { a = MatMul(x, w) b = MatMul(a, v) y = Relu(b) }",
            {"w": pruned(24, 32), "v": pruned(32, 24)},
        )
        double = helper.make_function(
            "mine",
            "Double",
            ["X"],
            ["Y"],
            [helper.make_node("Add", ["X", "X"], ["Y"])],
            [helper.make_opsetid("", 17)],
        )
        proto.functions.append(double)
        proto.opset_import.append(helper.make_opsetid("mine", 1))
        proto.graph.node[2].domain, proto.graph.node[2].op_type = "mine", "Double"
        model = Model(proto)
        feed = feeds(proto)
        wanted = run_model(proto, feed)[0]
        pack(model, ["w", "v"], form="bitmap")
        assert [(f.domain, f.name) for f in model.proto.functions] == [
            ("mine", "Double"),
            (DOMAIN, "BitmapMatMul"),
        ]
        assert np.array_equal(run_model(model.proto, feed)[0], wanted)

    def test_packing_in_two_steps_is_packing_at_once(self, build_model: Any, pruned: Any) -> None:
        text = "g (float[N, 24] x) => (float[N, 24] y) { a = MatMul(x, w) y = MatMul(a, v) }"
        weights = {"w": pruned(24, 32), "v": pruned(32, 24)}
        twice, once = Model(build_model(text, weights)), Model(build_model(text, weights))
        pack(twice, ["w"], form="bitmap")
        pack(twice, ["v"], form="bitmap")
        pack(once, ["w", "v"], form="bitmap")
        assert twice.to_bytes() == once.to_bytes()

    def test_a_cast_of_an_earlier_pass_survives(self, build_model: Any, pruned: Any, folded_ops: Any) -> None:
        text = "g (float[N, 24] x) => (float[N, 24] y) { a = MatMul(x, w) y = MatMul(a, v) }"
        model = Model(build_model(text, {"w": pruned(24, 32), "v": pruned(32, 24)}))
        pack(model, ["w"], form="bitmap", values="fp16")
        pack(model, ["v"], form="bitmap")
        check(model.proto)
        assert folded_ops(model.proto) == {".MatMul": 2}

    def test_foreign_functions_of_our_domain_are_refused(self, build_model: Any, pruned: Any) -> None:
        model = as_model("matmul", build_model, pruned)
        foreign = helper.make_function(
            DOMAIN,
            "BitmapMatMul",
            ["A"],
            ["B"],
            [helper.make_node("Relu", ["A"], ["B"])],
            [helper.make_opsetid("", 17)],
        )
        model.proto.functions.append(foreign)
        model.proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        with pytest.raises(ModelError, match="not one that onnxprune writes"):
            pack(model, ["w"], form="bitmap")


class TestReport:
    def test_sizes_and_reasons(self, build_model: Any, pruned: Any) -> None:
        text = "g (float[N, 40] x) => (float[N, 40] y) { h = MatMul(x, w) y = MatMul(h, full) }"
        model = Model(
            build_model(
                text, {"w": pruned(40, 40), "full": np.ones((40, 40), np.float32), "unused": pruned(40, 40)}
            )
        )
        nonzeros = int(np.count_nonzero(model.array("w")))
        report = pack(model, ["w", "full", "unused", "w"], form="bitmap")
        assert [(e.name, e.form) for e in report.weights] == [
            ("w", "packed"),
            ("full", "dense"),
            ("unused", "dense"),
        ]
        packed, full, unused = report.weights
        assert (packed.dense_bytes, packed.stored_bytes) == (6400, 200 + 4 * (1 + nonzeros))
        assert full.stored_bytes == full.dense_bytes == 6400 and "of 6400 bytes" in full.reason
        assert unused.reason == "nothing uses it"
        assert report.by_name("w") is packed and report.by_name("x") is None
        assert report.changed == (packed,)

    def test_what_is_packed_stays_as_it_is(self, build_model: Any, pruned: Any) -> None:
        model = as_model("matmul", build_model, pruned)
        pack(model, ["w"], form="bitmap")
        before = model.to_bytes()
        assert pack(model, ["w"]).weights[0].reason == "packed already"
        assert model.to_bytes() == before

    def test_fp16_that_would_overflow_keeps_its_values(self, build_model: Any, pruned: Any) -> None:
        model = as_model("matmul", build_model, pruned)
        array = model.array("w").copy()
        array[0, 0] = 7e4
        model.set_array("w", array)
        report = pack(model, ["w"], form="bitmap", values="fp16")
        assert "float16" in report.weights[0].reason
        assert model.index.tensors["w"].data_type == TensorProto.FLOAT

    def test_integers_stay(self, build_model: Any) -> None:
        text = "g (int32[N, 40] x) => (int32[N, 40] y) { y = Mul(x, w) }"
        model = Model(build_model(text, {"w": np.zeros((40, 40), np.int32)[:1]}))
        assert "INT32" in pack(model, ["w"], form="bitmap").weights[0].reason

    def test_unknown_weight(self, build_model: Any, pruned: Any) -> None:
        with pytest.raises(ModelError, match="no weight named 'nope'"):
            pack(as_model("matmul", build_model, pruned), ["nope"], form="bitmap")

    def test_70_percent_zeros_take_a_third(self, build_model: Any) -> None:
        array = np.ones(100_000, np.float32)
        array[np.random.default_rng(0).permutation(100_000)[:70_000]] = 0
        text = "g (float[N, 100] x) => (float[N, 1000] y) { y = MatMul(x, w) }"
        for values, limit in (("same", 0.34), ("fp16", 0.19)):
            model = Model(build_model(text, {"w": array.reshape(100, 1000)}))
            entry = pack(model, ["w"], values=values).weights[0]
            assert entry.stored_bytes <= limit * entry.dense_bytes
            assert len(model.to_bytes()) <= limit * entry.dense_bytes + 4500  # with function and names
