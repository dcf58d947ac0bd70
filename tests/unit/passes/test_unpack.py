from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.passes.unpack import unpack
from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN

TEXT = """g (float[N, 24] x, float[N, 8, 9, 9] m, int64[N] i)
    => (float[N, 32] y, float[N, 16, 5, 5] c, float[32, N] l) {
    e = Gather(t, i)
    h = MatMul(x, w)
    g = Gemm<transB=1, alpha=0.5>(x, u, b)
    s = Add(h, g)
    y = Add(s, e)
    c = Conv<strides=[2,2], pads=[1,1,1,1]>(m, k)
    tt = Transpose<perm=[1,0]>(t)
    xx = Transpose<perm=[1,0]>(x)
    z = MatMul(v, xx)
    r = MatMul(odd, xx)
    l = Concat<axis=0>(z, r)
}"""  # fmt: skip
SHAPES = {"w": (24, 32), "u": (32, 24), "t": (64, 32), "k": (16, 8, 3, 3), "v": (17, 24), "odd": (15, 24)}


@pytest.fixture
def dense(build_model: Callable[..., onnx.ModelProto], pruned: Callable[..., Any]) -> Model:
    weights = {name: pruned(*shape, seed=seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    proto = build_model(TEXT, weights | {"b": np.ones(32, np.float32)})
    for node in proto.graph.node:
        node.ClearField("domain")  # the parser writes the default, exporters do not
    proto.graph.node[1].name = "first"
    proto.graph.node[1].metadata_props.add(key="a", value="b")
    proto.metadata_props.add(key="author", value="me")
    return Model(proto)


def nodes(model: Model) -> list[bytes]:
    return [node.SerializeToString(deterministic=True) for node in model.graph.node]


def packed_names(model: Model) -> list[str]:
    return [name for name in SHAPES if name in model.index.tensors]


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 17])
@pytest.mark.parametrize("form", [None, *FORMS])
def test_is_the_inverse_of_pack(opset: int, form: str | None, dense: Model) -> None:
    if form and opset < FORMS[form].min_opset:
        pytest.skip("test_pack says that the weights stay dense")
    dense.proto.opset_import[0].version = opset
    model = dense.copy()
    report = pack(model, packed_names(model), form=form)
    assert {entry.form for entry in report.weights} == {"packed"}
    found = unpack(model)
    assert found == dict.fromkeys(SHAPES, "packed")
    assert nodes(model) == nodes(dense)
    assert not model.proto.functions and [o.domain for o in model.proto.opset_import] == [""]
    assert set(model.index.tensors) == set(dense.index.tensors)
    for name in dense.index.tensors:
        assert model.index.tensors[name] == dense.index.tensors[name]
    assert model.proto.metadata_props == dense.proto.metadata_props
    assert model.graph.input == dense.graph.input and model.graph.output == dense.graph.output


@pytest.mark.parametrize("form", FORMS)
def test_constant_nodes_come_back_in_their_place(form: str, dense: Model) -> None:
    weights = {tensor.name: tensor for tensor in dense.graph.initializer}
    for position, name in ((3, "w"), (0, "t"), (0, "k")):
        node = helper.make_node("Constant", [], [name], name=f"const_{name}", value=weights[name])
        dense.graph.node.insert(position, node)
        dense.graph.initializer.remove(weights[name])
    dense.graph.node.sort(key=lambda node: node.op_type != "Constant")
    dense.reindex()
    model = dense.copy()
    pack(model, list(SHAPES), form=form)
    assert any(node.domain == DOMAIN for node in model.graph.node)
    unpack(model)
    assert [n.name for n in model.graph.node] == [n.name for n in dense.graph.node]
    for mine, theirs in zip(model.graph.node, dense.graph.node, strict=True):
        if mine.op_type != "Constant":
            assert mine == theirs
    for name in SHAPES:
        assert model.array(name).tobytes() == dense.array(name).tobytes()
        assert (name in model.index.constants) == (name in dense.index.constants)


@pytest.mark.parametrize("form", FORMS)
def test_fp16_values_are_widened(form: str, dense: Model) -> None:
    model = dense.copy()
    pack(model, list(SHAPES), values="fp16", form=form)
    unpack(model)
    assert nodes(model) == nodes(dense)
    for name in SHAPES:
        wanted = dense.array(name)
        assert model.array(name).dtype == np.float32
        assert np.array_equal(model.array(name), wanted.astype(np.float16).astype(np.float32))


def test_a_dense_model_is_left_alone(dense: Model) -> None:
    before = dense.to_bytes()
    assert unpack(dense) == {}
    assert dense.to_bytes() == before


def test_negative_zero_becomes_zero(build_model: Any) -> None:
    array = np.zeros((40, 40), np.float32)
    array[0, 0], array[1, 1] = -0.0, -1.5
    model = Model(build_model("g (float[N, 40] x) => (float[N, 40] y) { y = MatMul(x, w) }", {"w": array}))
    pack(model, ["w"])
    unpack(model)
    assert np.array_equal(model.array("w"), array) and not np.signbit(model.array("w")[0, 0])


class TestTensorsThatOtherToolsMerged:
    """Tools that remove duplicates may let several of our nodes share a mask, or mask and values."""

    def model(self, build_model: Any, first: Any, second: Any) -> Model:
        text = "g (float[N, 24] x) => (float[N, 32] y) { a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b) }"
        model = Model(build_model(text, {"w": first, "v": second}))
        pack(model, ["w", "v"], form="bitmap")
        return model

    def test_shared_mask(self, build_model: Any, pruned: Any) -> None:
        first = pruned(24, 32)
        model = self.model(build_model, first, first * 2)
        model.graph.node[1].input[1] = "w_mask"
        model.reindex()
        unpack(model)
        assert set(model.index.tensors) == {"w", "v", "v_mask"}
        assert np.array_equal(model.array("v"), first * 2)

    def test_shared_mask_and_values(self, build_model: Any, pruned: Any) -> None:
        first = pruned(24, 32)
        model = self.model(build_model, first, first)
        model.graph.node[1].input[1:] = ["w_mask", "w"]
        model.reindex()
        unpack(model)
        assert [list(node.input) for node in model.graph.node[:2]] == [["x", "w"], ["x", "w"]]
        assert np.array_equal(model.array("w"), first)

    def test_shared_values_of_different_weights(self, build_model: Any, pruned: Any) -> None:
        first = pruned(24, 32)
        model = self.model(build_model, first, first[::-1, ::-1])
        model.graph.node[1].input[2] = "w"  # the same values, another mask
        model.reindex()
        unpack(model)
        assert [list(node.input) for node in model.graph.node[:2]] == [["x", "w"], ["x", "w_dense"]]
        assert np.array_equal(model.array("w_dense") != 0, first[::-1, ::-1] != 0)

    def test_values_that_another_node_reads(self, build_model: Any, pruned: Any) -> None:
        model = self.model(build_model, pruned(24, 32), pruned(24, 32, seed=1))
        model.graph.node.append(helper.make_node("Neg", ["w"], ["unused"]))
        model.reindex()
        values = model.array("w").copy()
        unpack(model)
        assert np.array_equal(model.array("w"), values)
        assert model.graph.node[0].input[1] == "w_dense"
        onnx.checker.check_model(model.proto, full_check=True)


class TestCorruption:
    @pytest.fixture
    def model(self, build_model: Any, pruned: Any) -> Model:
        text = "g (float[N, 24] x) => (float[N, 32] y) { y = MatMul(x, w) }"
        model = Model(build_model(text, {"w": pruned(24, 32)}))
        pack(model, ["w"], form="bitmap")
        model.graph.node[0].name = "layer"
        return model

    def refuses(self, model: Model, text: str) -> None:
        model.reindex()
        before = model.to_bytes()
        with pytest.raises(ModelError, match=text):
            unpack(model)
        assert model.to_bytes() == before

    def replace(self, model: Model, name: str, array: Any) -> None:
        model.index.tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    def attribute(self, model: Model, name: str) -> onnx.AttributeProto:
        return next(a for a in model.graph.node[0].attribute if a.name == name)

    def test_mask_of_another_size(self, model: Model) -> None:
        self.replace(model, "w_mask", model.array("w_mask")[:-1])
        self.refuses(
            model, r"mask of the weight of node 'layer' .* uint8\[95\], shape \[24, 32\] needs uint8\[96\]"
        )

    def test_too_few_values(self, model: Model) -> None:
        self.replace(model, "w", model.array("w")[:-1])
        self.refuses(model, "bits set")

    def test_a_bit_too_many(self, model: Model) -> None:
        mask = model.array("w_mask").copy()
        mask[mask != 255] |= 1
        mask[0] = 255
        self.replace(model, "w_mask", mask)
        self.refuses(model, "bits set")

    def test_values_of_another_type(self, model: Model) -> None:
        self.replace(model, "w", model.array("w").astype(np.int32))
        self.refuses(model, "int32")

    def test_absurd_shape_allocates_nothing(self, model: Model) -> None:
        self.attribute(model, "shape").ints[:] = [2**40, 2**20]
        self.refuses(model, "needs uint8")

    def test_negative_shape(self, model: Model) -> None:
        self.attribute(model, "shape").ints[:] = [-24, -32]
        self.refuses(model, "negative")

    @pytest.mark.parametrize("name", ["shape", "dtype"])
    def test_missing_attribute(self, name: str, model: Model) -> None:
        model.graph.node[0].attribute.remove(self.attribute(model, name))
        self.refuses(model, name)

    def test_attribute_of_another_type(self, model: Model) -> None:
        self.attribute(model, "shape").CopyFrom(helper.make_attribute("shape", "24,32"))
        self.refuses(model, "shape")

    def test_dtype_that_is_none(self, model: Model) -> None:
        self.attribute(model, "dtype").i = 99
        self.refuses(model, "dtype 99")

    def test_missing_inputs(self, model: Model) -> None:
        del model.graph.node[0].input[1:]
        self.refuses(model, "inputs")

    def test_tensors_that_are_not_constant(self, model: Model) -> None:
        model.graph.node[0].input[1] = "x"
        self.refuses(model, "'x' .* not a constant")

    def test_unknown_op(self, model: Model) -> None:
        model.graph.node[0].op_type = "ZipMatMul"
        self.refuses(model, "ZipMatMul")

    def test_newer_version(self, model: Model) -> None:
        model.proto.opset_import[1].version = 7
        self.refuses(model, "version 7")

    @pytest.mark.parametrize("ints", [None, [], [1], [600, 2]])
    def test_span_that_onnx_runtime_would_believe(self, ints: list[int] | None, model: Model) -> None:
        unpack(model)
        pack(model, ["w"], form="gaps8")
        if ints is None:
            model.graph.node[0].attribute.remove(self.attribute(model, "span"))
        else:
            self.attribute(model, "span").ints[:] = ints
        self.refuses(model, "span")

    @pytest.mark.parametrize("name", ["starts", "filler", "pieces", "shape_tensor"])
    def test_sums_that_onnx_runtime_would_believe(self, name: str, model: Model) -> None:
        unpack(model)
        model.proto.opset_import[0].version = 9
        pack(model, ["w"], form="gaps8")
        attribute = self.attribute(model, name)
        value = attribute.ints if name == "pieces" else numpy_helper.to_array(attribute.t)
        wrong = list(np.asarray(value) + 1) if name == "pieces" else numpy_helper.from_array(value + 1)
        attribute.CopyFrom(helper.make_attribute(name, wrong))
        self.refuses(model, f"'{name}'")

    def test_node_in_a_subgraph(self, model: Model, build_model: Any) -> None:
        text = """g (float[N, 24] x, bool c) => (float[N, 24] y) { y = If (c) <
            then_branch = a () => (float[N, 24] p) { p = Relu(x) },
            else_branch = b () => (float[N, 24] q) { q = Neg(x) }> }"""
        whole = Model(build_model(text))
        whole.graph.node[0].attribute[0].g.node.append(model.graph.node[0])
        self.refuses(whole, "subgraph")
