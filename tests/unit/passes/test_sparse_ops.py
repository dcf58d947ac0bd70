"""The pass as a whole: what the model looks like afterwards, and that it computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune import runtime
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.passes.shapes import Shapes, infer
from onnxprune.passes.sparse_ops import find_chains, longest, rewrite
from onnxprune.passes.unpack import unpack
from onnxprune.storage.form import DOMAIN, MIN_IR_VERSION

TEXT = """g (float[N, S, 24] x, float[N, 8, 9, 9] image) => (float[N, S, 24] y, float[N, 64] z) {
    a = MatMul(x, wa)  ab = Add(ba, a)  d = Div(ab, root)  e = Erf(d)  f = Add(e, one)
    g = Mul(ab, f)  h = Mul(g, half)
    b = MatMul(h, wb)  bb = Add(b, bb0)  s = Add(bb, x)
    y = LayerNormalization <axis = -1> (s, gamma, beta)
    c = Conv <pads = [1, 1, 1, 1]> (image, wc, bc)  r = Clip(c, zero, six)
    dw = Conv <group = 16, pads = [1, 1, 1, 1]> (r, wd)  q = HardSwish(dw)
    k = Conv(q, wk)  t = Add(r, k)  u = Relu(t)
    mean = ReduceMean <axes = [2, 3], keepdims = 0> (u)
    z = Gemm <transB = 1> (mean, wg, bg) }"""
PACKED = {"wa": (24, 48), "wb": (48, 24), "wc": (16, 8, 3, 3), "wk": (16, 16, 1, 1), "wg": (64, 16)}
OPS = [
    "SparseGap8MatMulGelu",
    "SparseGap8MatMulAddNorm",
    "SparseGap8ConvClip",
    "DirectConvHardSwish",
    "SparseGap8ConvAddRelu",
    "SparseGap8Gemm",
]


@pytest.fixture
def dense(pruned: Callable[..., Any]) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {TEXT}')
    rng = np.random.default_rng(0)

    def vector(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {
        **{name: pruned(*shape, seed=i) for i, (name, shape) in enumerate(PACKED.items())},
        "wd": vector(16, 1, 3, 3),
        "ba": vector(48),
        "bb0": vector(24),
        "bc": vector(16),
        "bg": vector(64),
        "gamma": vector(24),
        "beta": vector(24),
    }
    numbers = {"root": 2**0.5, "one": 1, "half": 0.5, "zero": 0, "six": 6}
    arrays |= {name: np.array(value, np.float32) for name, value in numbers.items()}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    for node in proto.graph.node:
        node.ClearField("domain")
        node.name = f"node_{node.output[0]}"
    proto.graph.node[0].metadata_props.add(key="a", value="b")
    proto.metadata_props.add(key="author", value="me")
    return Model(proto)


@pytest.fixture
def feed() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((2, 3, 24)).astype(np.float32),
        "image": rng.standard_normal((2, 8, 9, 9)).astype(np.float32),
    }


def switched(dense: Model, form: str | None = "gaps8", **options: Any) -> tuple[Model, Shapes]:
    model, shapes = dense.copy(), Shapes(infer(dense))
    pack(model, list(PACKED), form=form, **options)
    found, refusals = find_chains(model, shapes)
    assert not refusals
    rewrite(model, longest(found), shapes)
    return model, shapes


def outputs(model: Model, feed: dict[str, Any], **options: Any) -> list[Any]:
    found: list[Any] = runtime.session(model.proto, threads=1, **options).run(None, feed)
    return found


def close(a: list[Any], b: list[Any]) -> bool:
    return all(np.abs(p - q).max() <= 1e-5 * np.abs(p).max() for p, q in zip(a, b, strict=True))


def test_every_chain_becomes_one_op(dense: Model, feed: dict[str, Any]) -> None:
    model, _ = switched(dense)
    assert [n.op_type for n in model.graph.node if n.domain == DOMAIN] == OPS
    assert [n.op_type for n in model.graph.node if not n.domain] == ["ReduceMean"]
    onnx.checker.check_model(model.proto, full_check=True)
    assert close(outputs(dense, feed), outputs(model, feed, kernels=False))


def test_stock_runs_the_dense_ops(dense: Model, folded_ops: Callable[..., Counter[str]]) -> None:
    model, _ = switched(dense)
    assert folded_ops(model.proto) == folded_ops(dense.proto)


@pytest.mark.skipif(runtime.ops.library_path() is None, reason="the library is not built")
def test_kernels_compute_the_same(dense: Model, feed: dict[str, Any]) -> None:
    model, _ = switched(dense)
    assert close(outputs(dense, feed), outputs(model, feed, kernels=True))


def test_the_rest_is_untouched(dense: Model) -> None:
    model, _ = switched(dense)
    first = model.graph.node[0]
    assert first.name == "node_a" and first.metadata_props[0].key == "a"
    assert list(first.input) == ["x", "wa_steps", "wa", "ba"] and list(first.output) == ["h"]
    assert model.graph.input == dense.graph.input and model.graph.output == dense.graph.output
    assert model.proto.metadata_props == dense.proto.metadata_props
    assert model.proto.ir_version == dense.proto.ir_version == MIN_IR_VERSION
    assert [(o.domain, o.version) for o in model.proto.opset_import] == [("", 17), (DOMAIN, 1)]
    assert sorted(f.name for f in model.proto.functions) == sorted(OPS)


def test_constants_that_nobody_reads_go(dense: Model) -> None:
    model, _ = switched(dense)
    kept = {t.name for t in model.graph.initializer}
    assert not kept & {"root", "one", "half", "zero", "six"}
    assert kept >= {"ba", "bb0", "bc", "bg", "gamma", "beta", "wd"}


def test_missing_biases_are_zeros(dense: Model) -> None:
    model, _ = switched(dense)
    (direct,) = [n for n in model.graph.node if n.op_type == "DirectConvHardSwish"]
    assert list(direct.input) == ["r", "wd", "wd_no_bias"]
    assert not model.array("wd_no_bias").any() and model.array("wd_no_bias").shape == (16,)


def test_types_of_the_new_values(dense: Model) -> None:
    model, _ = switched(dense)
    found = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in model.graph.value_info
    }
    assert found == {
        "h": ["N", "S", 48], "r": ["N", 16, 9, 9], "q": ["N", 16, 9, 9], "u": ["N", 16, 9, 9],
    }  # fmt: skip


def test_a_choice_of_some(dense: Model, feed: dict[str, Any]) -> None:
    model, shapes = dense.copy(), Shapes(infer(dense))
    pack(model, list(PACKED), form="bitmap")
    found, _ = find_chains(model, shapes)
    chosen = [found[1][1], found[2][0]]
    rewrite(model, chosen, shapes)
    ours = [n.op_type for n in model.graph.node if n.domain == DOMAIN]
    assert ours == [
        "BitmapMatMul",
        "SparseBitmapMatMulAdd",
        "SparseBitmapConv",
        "BitmapConv",
        "BitmapGemmBias",
    ]
    assert {f.name for f in model.proto.functions} == set(ours)
    onnx.checker.check_model(model.proto, full_check=True)
    assert close(outputs(dense, feed), outputs(model, feed, kernels=False))


def test_nothing_chosen_changes_nothing(dense: Model) -> None:
    before = dense.proto.SerializeToString(deterministic=True)
    rewrite(dense, [], Shapes({}))
    assert dense.proto.SerializeToString(deterministic=True) == before


def test_constants_that_callers_may_replace(dense: Model) -> None:
    for name in ("six", "wd"):  # a limit, and the weight of a convolution
        tensor = dense.index.tensors[name]
        dims = list(tensor.dims)
        dense.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, dims))
    dense.reindex()
    model, shapes = dense.copy(), Shapes(infer(dense))
    pack(model, list(PACKED), form="gaps8")
    found, refusals = find_chains(model, shapes)
    assert refusals == {"wd": "no op fits it"}
    assert [chains[-1].op_type for chains in found] == [
        "SparseGap8MatMulGelu", "SparseGap8MatMulAddNorm", "SparseGap8Conv", "SparseGap8ConvAddRelu",
        "SparseGap8Gemm",
    ]  # fmt: skip


def test_one_node_is_in_one_chain(dense: Model) -> None:
    """Both branches of an Add are products: the later one takes it."""
    text = """g (float[N, 24] x) => (float[N, 32] y) {
        a = MatMul(x, w)  b = MatMul(x, v)  y = Add(a, b) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    rng = np.random.default_rng(0)
    for name in ("w", "v"):
        array = rng.standard_normal((24, 32)) * (rng.random((24, 32)) < 0.3)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = Model(proto)
    feed = {"x": rng.standard_normal((3, 24)).astype(np.float32)}
    wanted, shapes = outputs(model, feed), Shapes(infer(model))
    pack(model, ["w", "v"])
    found, _ = find_chains(model, shapes)
    assert [chains[-1].output for chains in found] == ["a", "y"] and found[1][-1].residual == "a"
    rewrite(model, longest(found), shapes)
    assert close(wanted, outputs(model, feed, kernels=False))


@pytest.mark.parametrize("values", ["same", "fp16"])
@pytest.mark.parametrize("form", ["bitmap", "gaps4", None])
def test_unpack_undoes_it(dense: Model, feed: dict[str, Any], form: str | None, values: str) -> None:
    model, _ = switched(dense, form, values=values)
    found = unpack(model)
    assert found == dict.fromkeys(PACKED, "packed")
    assert not model.proto.functions and [o.domain for o in model.proto.opset_import] == [""]
    assert Counter(n.op_type for n in model.graph.node if n.op_type != "Constant") == Counter(
        {"MatMul": 2, "Add": 5, "Div": 1, "Erf": 1, "Mul": 3, "LayerNormalization": 1, "Conv": 3, "Clip": 1,
         "HardSigmoid": 1, "Relu": 1, "Gemm": 1, "ReduceMean": 1}
    )  # fmt: skip
    for name in PACKED:
        wanted = dense.array(name)
        if values == "fp16":
            wanted = wanted.astype(np.float16).astype(np.float32)
        assert np.array_equal(model.array(name), wanted)
    assert "wd_no_bias" not in model.index.tensors and "wk_no_bias" not in model.index.tensors
    onnx.checker.check_model(model.proto, full_check=True)
    if values == "same":
        assert close(outputs(dense, feed), outputs(model, feed))


def test_unpacked_nodes_have_names_of_their_own(dense: Model) -> None:
    model, _ = switched(dense)
    unpack(model)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"node_a", "node_b", "node_c", "node_k", "node_z"} <= set(names)
    product = next(node for node in model.graph.node if node.name == "node_a")
    assert product.op_type == "MatMul" and product.metadata_props[0].key == "a"


def test_what_was_unpacked_can_be_packed_again(dense: Model, feed: dict[str, Any]) -> None:
    model, _ = switched(dense)
    first = [n.op_type for n in model.graph.node]
    unpack(model)
    again, _ = switched(model)
    assert [n.op_type for n in again.graph.node] == first
    assert close(outputs(dense, feed), outputs(again, feed, kernels=False))


def test_constant_nodes_and_old_models(pruned: Callable[..., Any]) -> None:
    """Paddle's exports: weights in Constant nodes, opset 12, IR version 7."""
    text = """g (float[N, 8, 9, 9] x) => (float[N, 16, 9, 9] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w)  a = Add(c, three)  l = Clip(a, zero, six)
        m = Mul(c, l)  y = Div(m, six) }"""
    proto = onnx.parser.parse_model(f'<ir_version: 7, opset_import: ["": 12]> {text}')
    arrays = {"w": pruned(16, 8, 3, 3)}
    arrays |= {n: np.array(v, np.float32) for n, v in (("zero", 0), ("three", 3), ("six", 6))}
    for name, array in arrays.items():
        value = onnx.numpy_helper.from_array(array)
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], [name], value=value))
    model = Model(proto)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 8, 9, 9)).astype(np.float32)}
    wanted, shapes = outputs(model, feed), Shapes(infer(model))
    pack(model, ["w"], form="gaps4")
    found, _ = find_chains(model, shapes)
    rewrite(model, longest(found), shapes)
    assert [n.op_type for n in model.graph.node] == ["Constant", "Constant", "SparseGap4ConvHardSwish"]
    assert model.proto.ir_version == MIN_IR_VERSION
    assert close(wanted, outputs(model, feed, kernels=False))


SHARED = """g (float[N, 24] x, float[N, 24] z, int64[K] i) => (float[N, 24] y, float[K, 24] e) {
    a = MatMul(x, w)  ab = Add(a, b)  ar = Relu(ab)
    c = MatMul(z, w)  cr = Relu(c)
    d = Gemm(ar, w, b)  s = Add(d, cr)
    f = MatMul(s, w)  y = Tanh(f)
    ETEXT }"""


def siamese(pruned: Callable[..., Any], table: bool, constant: bool = False) -> Model:
    """Four products read one weight; with ``table`` a Gather too."""
    text = SHARED.replace("ETEXT", "e = Gather(w, i)" if table else "e = Gather(v, i)")
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    for node in proto.graph.node:
        node.ClearField("domain")
    arrays = {"w": pruned(24, 24), "b": np.arange(24, dtype=np.float32)}
    arrays |= {} if table else {"v": np.ones((5, 24), np.float32)}
    for name, array in arrays.items():
        tensor = onnx.numpy_helper.from_array(array, name)
        if constant and name == "w":
            node = onnx.helper.make_node("Constant", [], ["w"], "the weight", value=tensor)
            proto.graph.node.insert(0, node)
        else:
            proto.graph.initializer.append(tensor)
    return Model(proto)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("form", ["bitmap", "gaps4"])
def test_nodes_that_share_a_weight(
    pruned: Callable[..., Any],
    folded_ops: Callable[..., Counter[str]],
    form: str,
    table: bool,
    constant: bool,
) -> None:
    dense = siamese(pruned, table, constant)
    model, shapes = dense.copy(), Shapes(infer(dense))
    pack(model, ["w"], form=form)
    found, refusals = find_chains(model, shapes)
    assert not refusals
    rewrite(model, longest(found), shapes)
    prefix = {"bitmap": "Bitmap", "gaps4": "Gap4"}[form]
    ours = [n for n in model.graph.node if n.domain == DOMAIN]
    assert [n.op_type for n in ours] == [f"{prefix}Decode"] * table + [
        f"Sparse{prefix}MatMulRelu", f"Sparse{prefix}MatMulRelu", f"Sparse{prefix}Gemm",
        f"Sparse{prefix}MatMul",
    ]  # fmt: skip
    # One copy in the file; it has the weight's name again once nothing decodes it
    code, values = {"bitmap": "w_mask", "gaps4": "w_steps"}[form], "w_values" if table else "w"
    assert {tuple(n.input[1:3]) for n in ours[table:]} == {(code, values)}
    assert {n for n in model.index.tensors if n.startswith("w")} == {code, values, "w_no_bias"}
    onnx.checker.check_model(model.proto, full_check=True)
    rng = np.random.default_rng(1)
    feed = {name: rng.standard_normal((3, 24)).astype(np.float32) for name in ("x", "z")}
    feed["i"] = np.array([4, 0])
    assert close(outputs(dense, feed), outputs(model, feed, kernels=False))
    if runtime.ops.library_path() is not None:
        assert close(outputs(dense, feed), outputs(model, feed, kernels=True))
    left = {op.split(".")[-1] for op in folded_ops(model.proto)}
    assert left <= {"MatMul", "Gemm", "FusedGemm", "Add", "Relu", "Tanh", "Gather"}

    assert unpack(model) == {"w": "packed"}
    assert np.array_equal(model.array("w"), dense.array("w"))
    assert {n for n in model.index.tensors if n in model.index.uses} == set(dense.index.tensors)
    assert [n.name for n in model.graph.node if n.op_type == "Constant"] == ["the weight"] * constant
    assert close(outputs(dense, feed), outputs(model, feed))


def test_some_of_the_nodes_that_share_a_weight(pruned: Callable[..., Any]) -> None:
    dense = siamese(pruned, table=False)
    model, shapes = dense.copy(), Shapes(infer(dense))
    pack(model, ["w"], form="gaps8")
    before = model.copy()
    found, _ = find_chains(model, shapes)
    rewrite(model, [found[1][-1]], shapes)
    kinds = [n.op_type for n in model.graph.node if n.domain == DOMAIN]
    assert kinds == ["Gap8Decode", "SparseGap8MatMulRelu"]
    again = model.copy()
    pack(again, ["v"])  # a model that is partly packed can be packed further
    rng = np.random.default_rng(1)
    feed = {name: rng.standard_normal((3, 24)).astype(np.float32) for name in ("x", "z")}
    feed["i"] = np.array([4, 0])
    assert close(outputs(dense, feed), outputs(model, feed, kernels=False))
    rest, _ = find_chains(model, shapes)
    rewrite(model, longest(rest), shapes)
    assert not any(n.op_type == "Gap8Decode" for n in model.graph.node)
    assert "w" in model.index.tensors and "w_values" not in model.index.tensors
    assert close(outputs(dense, feed), outputs(model, feed, kernels=False))
    for packed in (before, model, again):
        unpack(packed)
        assert np.array_equal(packed.array("w"), dense.array("w"))


OLD = """g (float[N, S, 24] x, float[N, 8, 9, 9] image) => (float[N, S, 24] y, float[N, 64] z) {
    a = MatMul(x, wa)  ab = Add(ba, a)  h = Relu(ab)
    b = MatMul(h, wb)  bb = Add(b, bb0)  s = Add(bb, x)
    mean = ReduceMean <axes = [-1], keepdims = 1> (s)  o = Sub(s, mean)  p = Pow(o, two)
    v = ReduceMean <axes = [-1], keepdims = 1> (p)  e = Add(v, tiny)  d = Sqrt(e)  n = Div(o, d)
    m = Mul(n, gamma)  y = Add(m, beta)
    padded = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (image)
    c = Conv(padded, wc, bc)  r = Clip <min = 0.0, max = 6.0> (c)
    dw = Conv <group = 16, pads = [1, 1, 1, 1]> (r, wd)  q = Relu(dw)
    k = Conv(q, wk)  t = Add(r, k)  u = Relu(t)
    pool = GlobalAveragePool(u)  flat = Flatten(pool)  z = Gemm <transB = 1> (flat, wg, bg) }"""


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11])
def test_old_opsets(
    opset: int, dense: Model, feed: dict[str, Any], folded_ops: Callable[..., Counter[str]]
) -> None:
    """As exporters wrote them: initializers are inputs, limits and padding attributes before opset 11."""
    text = OLD
    if opset == 11:
        text = text.replace("<min = 0.0, max = 6.0> (c)", "(c, zero, six)")
        text = text.replace("<pads = [0, 0, 1, 1, 0, 0, 1, 1]> (image)", "(image, pads)")
    old = Model(onnx.parser.parse_model(f'<ir_version: 3, opset_import: ["": {opset}]> {text}'))
    read = {name for node in old.graph.node for name in node.input}
    numbers = {"two": np.array(2, np.float32), "tiny": np.array(1e-5, np.float32)}
    numbers["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    tensors = [t for t in dense.graph.initializer if t.name in read]
    tensors += [onnx.numpy_helper.from_array(a, n) for n, a in numbers.items() if n in read]
    old.graph.initializer.extend(tensors)
    old.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors
    )
    for node in old.graph.node:
        node.ClearField("domain")
    old.reindex()
    onnx.checker.check_model(old.proto, full_check=True)

    form = "gaps4" if opset >= 9 else "bitmap"
    model, _ = switched(old, form)
    name = {"gaps4": "SparseGap4", "bitmap": "SparseBitmap"}[form]
    assert [n.op_type for n in model.graph.node if n.domain == DOMAIN] == [
        f"{name}MatMulRelu", f"{name}MatMulAddNorm", f"{name}ConvClip", "DirectConvRelu",
        f"{name}ConvAddRelu", f"{name}Gemm",
    ]  # fmt: skip
    assert [value.name for value in model.graph.input] == ["x", "image"] and model.opset == opset
    onnx.checker.check_model(model.proto, full_check=True)
    assert close(outputs(old, feed), outputs(model, feed, kernels=False))
    if runtime.ops.library_path() is not None:
        assert close(outputs(old, feed), outputs(model, feed, kernels=True))
    folded = folded_ops(model.proto)
    assert not any(op.startswith("onnxprune.") for op in folded)
    assert folded == folded_ops(old.proto)

    unpack(model)
    assert not model.proto.functions
    assert all(np.array_equal(model.array(name), old.array(name)) for name in PACKED)
    onnx.checker.check_model(model.proto, full_check=True)
    assert close(outputs(old, feed), outputs(model, feed))


@pytest.mark.parametrize("shared", [False, True])
def test_a_bias_with_axes_becomes_a_vector(pruned: Callable[..., Any], shared: bool) -> None:
    text = "g (float[N, S, 24] x) => (float[N, S, 32] y, float[N, S, 32] z) { m = MatMul(x, w) y = Add(m, b)"
    text += " z = Mul(y, b) }" if shared else " z = Neg(y) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    for name, array in (("w", pruned(24, 32)), ("b", np.ones((1, 1, 32), np.float32))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = Model(proto)
    feed, shapes = {"x": np.ones((2, 3, 24), np.float32)}, Shapes(infer(model))
    wanted = outputs(model, feed)
    pack(model, ["w"])
    rewrite(model, longest(find_chains(model, shapes)[0]), shapes)
    assert list(model.index.tensors["b"].dims) == ([1, 1, 32] if shared else [32])
    if shared:  # the other reader keeps the old one
        assert list(model.index.tensors["b_vector"].dims) == [32]
    assert close(wanted, outputs(model, feed, kernels=False))
