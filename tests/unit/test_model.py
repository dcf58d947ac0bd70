from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import model as model_module
from onnxprune.errors import ModelError
from onnxprune.model import Model, Use, constant_tensor, label, node_reads, outer_reads, subgraphs

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x, float[4, 4] w, bool c) => (float[N, 4] y, float[N, 4] h) {
    k = Constant<value = float[4] {1, 2, 3, 4}>()
    [mm] h = MatMul(x, w)
    again = MatMul(h, w)
    twice = Add(again, again)
    y = If(c)<
        then_branch = t () => (float[N, 4] a) { a = Add(twice, k) },
        else_branch = e () => (float[N, 4] b) { inner = Add(h, h)  b = Loop(, c)<
            body = l (int64 i, bool p) => (bool q) { q = Cast<to = 9>(again) }> }>
}"""


def parse(text: str = TEXT) -> Model:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    return Model(proto)


def with_weight(tensor: TensorProto) -> Model:
    proto = onnx.parser.parse_model(TEXT)
    tensor.name = "w"
    proto.graph.initializer.append(tensor)
    return Model(proto)


def test_index() -> None:
    index = parse().index
    assert index.producer == {"k": 0, "h": 1, "again": 2, "twice": 3, "y": 4}
    assert set(index.tensors) == {"w", "k"}
    assert index.constants == {"k": 0}
    assert set(index.inputs) == {"x", "c"}  # w has a value
    assert list(index.outputs) == ["y", "h"]


def test_uses_name_every_slot_and_subgraph() -> None:
    uses = parse().index.uses
    assert uses["w"] == [Use(1, 1), Use(2, 1)]  # tied
    assert uses["again"] == [Use(3, 0), Use(3, 1), Use(4, -1)]  # in the loop inside the branch
    assert uses["h"] == [Use(2, 0), Use(4, -1)]
    assert uses["k"] == [Use(4, -1)]
    assert uses["c"] == [Use(4, 0), Use(4, -1)]
    assert not {"inner", "i", "p", "q", "a", "b", ""} & uses.keys()


def test_outer_reads_knows_all_local_names() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[4] i) => (float[4] o, float[4] passed) { o = Sum(i, init, sparse, outer, o2) }"
    )
    graph.initializer.add(name="init")
    graph.sparse_initializer.add().values.name = "sparse"
    assert outer_reads(graph) == {"outer", "o2", "passed"}


def test_node_reads_and_subgraphs() -> None:
    branch_node = parse().graph.node[4]
    assert len(list(subgraphs(branch_node))) == 2
    assert set(node_reads(branch_node)) == {"c", "twice", "k", "h", "again"}


def test_label_prefers_the_name() -> None:
    graph = parse().graph
    assert label(graph.node[1]) == "mm"
    assert label(graph.node[2]) == "MatMul(again)"
    assert label(onnx.NodeProto(op_type="Sink")) == "Sink()"


def test_constant_tensor_only_of_tensors() -> None:
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    assert constant_tensor(helper.make_node("Constant", [], ["k"], value=value)) == value
    assert constant_tensor(helper.make_node("Constant", [], ["k"], value=value, domain="mine")) is None
    assert constant_tensor(helper.make_node("Constant", [], ["k"], value_floats=[1.0])) is None
    reference = helper.make_node("Constant", [], ["k"])
    reference.attribute.add(name="value", ref_attr_name="outer", type=onnx.AttributeProto.TENSOR)
    assert constant_tensor(reference) is None  # a function's parameter, not an empty tensor


def test_index_of_a_constant_without_output() -> None:
    proto = parse().proto
    proto.graph.node[0].ClearField("output")
    assert set(Model(proto).index.tensors) == {"w"}


def test_sparse_initializers_are_no_inputs() -> None:
    proto = parse().proto
    proto.graph.sparse_initializer.add().values.name = "x"
    assert set(Model(proto).index.inputs) == {"c"}


def test_opset_and_name() -> None:
    model = parse()
    assert model.opset == 17
    assert model.name == "g"
    assert Model(model.proto, Path("/a/b.onnx")).name == "b.onnx"
    assert Model(onnx.ModelProto()).name == "model"
    assert Model(onnx.ModelProto()).opset == 0
    model.proto.opset_import[0].domain = "ai.onnx"
    assert model.opset == 17


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8])
@pytest.mark.parametrize("raw", [True, False])
def test_array_round_trip(dtype: type, raw: bool) -> None:
    values = np.arange(-8, 8).reshape(4, 4).astype(dtype)
    if raw:
        tensor = numpy_helper.from_array(values)
    else:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        tensor = helper.make_tensor("w", kind, [4, 4], values)
        assert not tensor.HasField("raw_data")
    model = with_weight(tensor)
    np.testing.assert_array_equal(model.array("w"), values)
    model.set_array("w", np.asfortranarray(values * 2))
    assert model.array("w").dtype == dtype
    np.testing.assert_array_equal(model.array("w"), values * 2)
    stored = model.graph.initializer[0]
    assert len(stored.raw_data) == values.nbytes
    assert not stored.float_data
    assert not stored.int32_data
    assert not stored.double_data


def test_set_array_changes_nothing_but_the_values() -> None:
    tensor = numpy_helper.from_array(np.eye(4, dtype=np.float32))
    tensor.doc_string = "kept"
    tensor.metadata_props.add(key="a", value="b")
    model = with_weight(tensor)
    before = model.proto.SerializeToString()
    model.set_array("w", np.zeros((4, 4), np.float32))
    assert model.proto.SerializeToString() != before
    model.set_array("w", np.eye(4, dtype=np.float32))
    assert model.proto.SerializeToString() == before


def test_set_array_of_a_constant_node() -> None:
    model = parse()
    model.set_array("k", np.zeros(4, np.float32))
    assert not model.array("k").any()
    assert model.graph.node[0].attribute[0].t.raw_data == bytes(16)


def test_set_array_of_a_scalar() -> None:
    model = with_weight(numpy_helper.from_array(np.array(1.0, np.float32)))
    model.set_array("w", np.array(2.0, np.float32))
    assert model.array("w").shape == ()
    assert model.array("w") == 2.0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3), np.float32), r"float32\[4, 4\], the new value is float32\[4, 3\]"),
        (np.zeros(16, np.float32), r"the new value is float32\[16\]"),
        (np.zeros((4, 4)), r"the new value is float64\[4, 4\]"),
    ],
)
def test_set_array_refuses_another_shape_or_type(array: np.ndarray, message: str) -> None:
    model = parse()
    before = model.proto.SerializeToString()
    with pytest.raises(ModelError, match=message):
        model.set_array("w", array)
    assert model.proto.SerializeToString() == before


@pytest.mark.parametrize("method", [lambda m: m.array("x"), lambda m: m.set_array("x", np.zeros(1))])
def test_unknown_weight(method: Callable[[Model], object]) -> None:
    with pytest.raises(ModelError, match="no weight named 'x'"):
        method(parse())


def test_strings_are_no_weights() -> None:
    model = with_weight(helper.make_tensor("w", TensorProto.STRING, [1], [b"a"]))
    assert model.array("w").tolist() == ["a"]
    with pytest.raises(ModelError, match="strings"):
        model.set_array("w", np.array(["b"], dtype=object))


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(12)),
        TensorProto(dims=[1], raw_data=bytes(4)),
        TensorProto(data_type=77, dims=[1], raw_data=bytes(4)),
    ],
)
def test_broken_weight_is_a_model_error(tensor: TensorProto) -> None:
    with pytest.raises(ModelError, match="weight 'w' cannot be read"):
        with_weight(tensor).array("w")


def test_copy_is_independent() -> None:
    model = Model(parse().proto, Path("/a/b.onnx"), ("data",))
    copy = model.copy()
    assert (copy.path, copy.external, copy.proto) == (model.path, model.external, model.proto)
    copy.set_array("w", np.zeros((4, 4), np.float32))
    assert model.array("w").any()
    assert not copy.array("w").any()


def test_to_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse()
    data = model.to_bytes()
    assert data == model.proto.SerializeToString()
    monkeypatch.setattr(model_module, "MAX_PROTO_BYTES", len(data) - 1)
    with pytest.raises(ModelError, match="over 2 GiB"):
        model.to_bytes()
    monkeypatch.setattr(model_module, "MAX_PROTO_BYTES", 10)  # the estimate is enough
    with pytest.raises(ModelError, match="over 2 GiB"):
        model.to_bytes()


def test_reindex_sees_added_nodes() -> None:
    model = parse()
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    model.reindex()
    assert model.index.producer["z"] == 5
    assert model.index.uses["y"] == [Use(5, 0)]
