from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import io
from onnxprune.errors import ModelError, OnnxPruneError, ResourceError, UsageError
from onnxprune.model import Model
from tests.unit.files.weights import large

SIMPLE = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 4] y) { [first] h = MatMul(x, w)  [second] y = Relu(h) }"""

RICH = """<ir_version: 10, opset_import: ["": 21, "local": 1], producer_name: "tests", domain: "a.b",
    model_version: 7, doc_string: "of the model", metadata_props: ["k": "v", "empty": ""]>
g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) <float[N, 4] h> {
    [mm] h = MatMul(x, w)
    hidden = local.Twice(h)
    s = ReduceSum<keepdims = 0>(hidden)
    c = Cast<to = 9>(s)
    chosen = If(c)<
        then_branch = t () => (float[N, 4] a) { a = Relu(hidden) },
        else_branch = e () => (float[N, 4] b) { m = MatMul(hidden, inner)  b = Add(m, k) }>
    k = Constant<value = float[4] {1, 2, 3, 4}>()
    y = MatMul(chosen, sparse)
}
<domain: "local", opset_import: ["": 21]>
Twice (a) => (b) { two = Constant<value = float {2}>()  b = Mul(a, two) }"""


def simple() -> onnx.ModelProto:
    model = onnx.parser.parse_model(SIMPLE)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    return model


def sparse_tensor() -> onnx.SparseTensorProto:
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [2], [1.5, 2.5])
    indices = helper.make_tensor("sparse_indices", TensorProto.INT64, [2], [0, 5])
    return helper.make_sparse_tensor(values, indices, [4, 4])


def rich() -> onnx.ModelProto:
    """Everything that a round trip could lose."""
    model = onnx.parser.parse_model(RICH)
    graph = model.graph
    graph.node.insert(2, graph.node.pop(6 - 1))  # the Constant before its reader
    branch = graph.node[5].attribute[1].g
    branch.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "inner"))
    weight = graph.initializer.add()
    weight.CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [4, 4], range(16)))  # typed field
    weight.doc_string = "of a tensor"
    weight.metadata_props.add(key="tk", value="tv")
    graph.sparse_initializer.append(sparse_tensor())
    graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"\xff"]))
    graph.initializer.append(helper.make_tensor("int4", TensorProto.INT4, [3], [1, -2, 3]))
    graph.initializer.append(helper.make_tensor("f8", TensorProto.FLOAT8E4M3FN, [3], [1.0, 2.0, 3.0]))
    graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float16), "empty"))
    graph.doc_string = "of the graph"
    graph.metadata_props.add(key="gk", value="gv")
    graph.node[0].doc_string = "of a node"
    graph.node[0].metadata_props.add(key="nk", value="nv")
    graph.input[0].doc_string = "of an input"
    note = graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    return model


def write(folder: Path, data: bytes | onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def nested(depth: int) -> onnx.ModelProto:
    model = simple()
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["o0"])], "leaf", [], [])
    graph.output.add(name="o0")
    for level in range(1, depth + 1):
        node = helper.make_node("If", ["yes"], [f"o{level}"], then_branch=graph)
        graph = helper.make_graph([node], f"g{level}", [], [])
        graph.output.add(name=f"o{level}")
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["deep"], then_branch=graph, name="outermost"))
    return model


def with_functions(calls: list[list[str]]) -> onnx.ModelProto:
    """Functions F0, F1, ...; ``calls[i]`` names what Fi calls, one after the other."""
    model = simple()
    model.opset_import.add(domain="local", version=1)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for i, callees in enumerate(calls):
        values = [f"v{k}" for k in range(len(callees) + 1)]
        nodes = [
            helper.make_node(name, [values[k]], [values[k + 1]], domain="local" if name[0] == "F" else "")
            for k, name in enumerate(callees)
        ]
        function = helper.make_function("local", f"F{i}", [values[0]], [values[-1]], nodes, imports)
        model.functions.append(function)
    model.graph.node.append(helper.make_node("F0", ["y"], ["z"], domain="local"))
    return model


# ---------------------------------------------------------------- malformed input

Change = Callable[[onnx.ModelProto], object]


def weight(**fields: object) -> Change:
    """Replace the weight by a tensor with these fields."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(TensorProto(name="w", **fields))

    return change


def node(*args: object, **keywords: object) -> Change:
    return lambda model: model.graph.node.append(helper.make_node(*args, **keywords))


def sparse(**fields: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = sparse_tensor()
        for name, value in fields.items():
            part, _, field = name.partition("__")
            target = getattr(tensor, part) if field else tensor
            if isinstance(value, list):
                getattr(target, field or part)[:] = value
            else:
                setattr(target, field, value)
        model.graph.sparse_initializer.append(tensor)

    return change


def rename_node_to_bytes(model: onnx.ModelProto) -> None:
    data = model.SerializeToString().replace(b"first", b"fir\xfft")
    model.ParseFromString(data)


def hide_graph(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[1].attribute.add(name="body", type=onnx.AttributeProto.INT)
    attribute.g.name = "hidden"


def short_in_subgraph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Add", ["y", "q"], ["o"])], "b", [], [])
    branch.output.add(name="o")
    branch.initializer.add(name="q", data_type=1, dims=[8], raw_data=b"1234")
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=branch, name="pick"))


def short_in_function(model: onnx.ModelProto) -> None:
    model.CopyFrom(with_functions([["Relu"]]))
    tensor = TensorProto(data_type=1, dims=[8], raw_data=b"1234")
    model.functions[0].node.append(helper.make_node("Constant", [], ["q"], value=tensor))


def read_in_subgraph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["nowhere"], ["o"])], "b", [], [])
    branch.output.add(name="o")
    node("If", ["y"], ["z"], then_branch=branch, name="pick")(model)


def shadow_in_subgraph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["y"], ["h"])], "b", [], [])
    branch.output.add(name="h")
    node("If", ["y"], ["z"], then_branch=branch, name="pick")(model)


F = TensorProto.FLOAT
CHANGES: dict[str, tuple[Change, str]] = {
    # header
    "no opset": (lambda m: m.ClearField("opset_import"), "imports no opset"),
    "opset zero": (lambda m: setattr(m.opset_import[0], "version", 0), "version 0"),
    "opset of the future": (lambda m: setattr(m.opset_import[0], "version", 999), "opset ai.onnx 999"),
    "opset twice": (lambda m: m.opset_import.add(domain="ai.onnx", version=16), "twice: 17 and 16"),
    "no ir_version": (lambda m: m.ClearField("ir_version"), "ir_version is 0"),
    "ir_version of the future": (lambda m: setattr(m, "ir_version", 99), "ir_version is 99"),
    "no graph": (lambda m: m.ClearField("graph"), "it holds no graph"),
    # graph
    "no nodes": (lambda m: m.graph.ClearField("node"), "no nodes"),
    "no outputs": (lambda m: m.graph.ClearField("output"), "no outputs"),
    "input without type": (lambda m: m.graph.input[0].ClearField("type"), "graph input 'x' has no type"),
    "input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "two graph inputs have the name 'x'"),
    "initializer twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "the name 'w'"),
    "initializer without name": (lambda m: m.graph.initializer.add(data_type=1), "initializer has no name"),
    "value made twice": (node("Relu", ["x"], ["h"], name="again"), "node 'again' (Relu) makes 'h'"),
    "node name twice": (node("Relu", ["x"], ["z"], name="first"), "two nodes have the name 'first'"),
    "name not UTF-8": (rename_node_to_bytes, "not valid UTF-8"),
    "node without op": (node("", ["x"], ["z"], name="blank"), "node 'blank' has no op_type"),
    "unknown value": (
        node("Relu", ["nowhere"], ["z"], name="bad"),
        "node 'bad' (Relu) reads 'nowhere', which nothing",
    ),
    "cycle": (node("Add", ["x", "z"], ["z"], name="own"), "node 'own' (Add) reads 'z' before"),
    "output nobody makes": (lambda m: m.graph.output.add(name="q"), "graph output 'q' is made by no node"),
    "domain not imported": (
        lambda m: (
            m.CopyFrom(with_functions([["Relu"]])),
            m.opset_import.pop(),
        ),
        "of domain 'local', which has no opset import",
    ),
    "unknown value in subgraph": (
        read_in_subgraph,
        "'nowhere', which nothing produces in a subgraph of node 'p",
    ),
    "shadowed value in subgraph": (shadow_in_subgraph, "makes 'h', a name already taken in a subgraph of"),
    "graph hidden in an integer": (hide_graph, "attribute 'body' of node 'second' (Relu) does not hold"),
    "subgraphs too deep": (lambda m: m.CopyFrom(nested(26)), "nested more than 24 deep"),
    # functions
    "recursive function": (lambda m: m.CopyFrom(with_functions([["F1"], ["F0"]])), "calls itself"),
    "function chain": (
        lambda m: m.CopyFrom(with_functions([[f"F{i + 1}"] for i in range(200)] + [["Relu"]])),
        "nested more than 128 deep",
    ),
    "function bomb": (
        lambda m: m.CopyFrom(with_functions([[f"F{i + 1}"] * 8 for i in range(9)] + [["Relu"]])),
        "more than 10,000,000 nodes when its functions are inlined",
    ),
    "function twice": (
        lambda m: (m.CopyFrom(with_functions([["Relu"]])), m.functions.append(m.functions[0])),
        "two functions have the name 'F0'",
    ),
    "function reads outside": (
        lambda m: (m.CopyFrom(with_functions([["Relu"]])), m.functions[0].node[0].input.__setitem__(0, "w")),
        "reads 'w', which nothing produces in function 'F0'",
    ),
    # tensors
    "negative dim": (weight(data_type=F, dims=[4, -4]), "initializer 'w' has shape [4, -4] with a negative"),
    "absurd dims": (weight(data_type=F, dims=[2**40, 2**40]), "more bytes than 64 bits can count"),
    "absurd dims behind a zero": (weight(data_type=F, dims=[0, 2**40, 2**40]), "more bytes than 64 bits"),
    "large dims": (weight(data_type=F, dims=[2**40]), f"FLOAT[1099511627776] needs {2**40}"),
    "too many dims": (weight(data_type=F, dims=[1] * 40, raw_data=bytes(4)), "has 40 dimensions"),
    "too few bytes": (
        weight(data_type=F, dims=[4, 4], raw_data=bytes(60)),
        "holds 60 bytes, FLOAT[4, 4] needs 64",
    ),
    "too many bytes": (weight(data_type=F, dims=[4, 4], raw_data=bytes(68)), "holds 68 bytes"),
    "no data": (weight(data_type=F, dims=[4, 4]), "holds 0 values in float_data, FLOAT[4, 4] needs 16"),
    "type unknown": (weight(data_type=77, dims=[1], raw_data=bytes(4)), "unknown data type 77"),
    "type missing": (weight(dims=[1], raw_data=bytes(4)), "unknown data type 0"),
    "data twice": (
        weight(data_type=F, dims=[1], raw_data=bytes(4), float_data=[1.0]),
        "twice: in raw_data and in float_data",
    ),
    "data in the wrong field": (
        weight(data_type=F, dims=[1], int64_data=[1]),
        "FLOAT[1] but has data in int64_data, wanted float_data",
    ),
    "odd complex": (
        weight(data_type=TensorProto.COMPLEX64, dims=[2], float_data=[1.0]),
        "holds 1 values in float_data, COMPLEX64[2] needs 4",
    ),
    "int4 one byte short": (
        weight(data_type=TensorProto.INT4, dims=[5], raw_data=bytes(2)),
        "holds 2 bytes, INT4[5] needs 3",
    ),
    "segments": (
        lambda m: m.graph.initializer[0].segment.CopyFrom(TensorProto.Segment(begin=0, end=4)),
        "split in segments",
    ),
    "strings in raw_data": (
        weight(data_type=TensorProto.STRING, dims=[1], raw_data=b"a"),
        "strings in raw_data",
    ),
    "short constant": (
        node("Constant", [], ["k"], value=TensorProto(data_type=F, dims=[8], raw_data=b"1234"), name="const"),
        "attribute 'value' of node 'const' (Constant) holds 4 bytes",
    ),
    "short in a subgraph": (short_in_subgraph, "initializer 'q' in a subgraph of node 'pick' (If) holds 4"),
    "short in a function": (short_in_function, "in function 'F0' holds 4 bytes"),
    "sparse index too large": (
        sparse(indices__int64_data=[0, 16]),
        "'sparse' point outside its shape [4, 4]",
    ),
    "sparse index negative": (sparse(indices__int64_data=[-1, 5]), "'sparse' point outside"),
    "sparse indices too few": (
        sparse(indices__int64_data=[0], indices__dims=[1]),
        "wanted INT64[2] or INT64[2, 2]",
    ),
    "sparse dims negative": (sparse(dims=[-4, 4]), "sparse initializer 'sparse' has shape [-4, 4]"),
    "sparse dims absurd": (sparse(dims=[2**40, 2**40]), "more bytes than 64 bits"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_malformed_model(case: str, tmp_path: Path) -> None:
    change, message = CHANGES[case]
    model = simple()
    change(model)
    path = write(tmp_path, model)
    with pytest.raises(ModelError) as caught:
        io.load(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("model.onnx: ")
    assert "\n" not in str(caught.value)


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    model = simple()
    model.graph.node.append(model.graph.node.pop(0))
    assert model != simple()
    assert io.load(write(tmp_path, model)).proto == io.load(model).proto == simple()


def test_the_changed_models_are_valid_before_the_change(tmp_path: Path) -> None:
    with_sparse = simple()
    sparse()(with_sparse)
    for model in (simple(), with_functions([["F1", "F1"], ["Relu"]]), nested(20), with_sparse):
        assert io.load(write(tmp_path, model)).proto == model


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


def dangling(folder: Path) -> Path:
    (folder / "model.onnx").symlink_to("gone.onnx")
    return folder / "model.onnx"


def folder_with_model(folder: Path) -> Path:
    write(folder, simple(), "inside.onnx")
    return folder


def beyond_protobuf(folder: Path) -> Path:
    """Sixty nested graphs, as bytes: the Python classes refuse to build them."""

    def field(number: int, content: bytes) -> bytes:
        length = b""
        size = len(content)
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = field(2, b"leaf")
    for _ in range(60):
        graph = field(1, field(5, field(6, graph)))  # node, attribute, g
    return write(folder, b"\x08\x08" + field(7, graph))


FILES: dict[str, tuple[Callable[[Path], Path | str], type[OnnxPruneError], str]] = {
    "missing": (lambda d: d / "no.onnx", UsageError, "there is no file"),
    "folder": (folder_with_model, UsageError, "is a folder"),
    "fifo": (fifo, UsageError, "not a regular file"),
    "dangling link": (dangling, UsageError, "there is no file"),
    "nul in the name": (lambda d: "a\0b", UsageError, "not a file name"),
    "empty name": (lambda d: "", UsageError, "not a file name"),
    "below a file": (lambda d: write(d, simple()) / "x.onnx", UsageError, "cannot read"),
    "empty": (lambda d: write(d, b""), ModelError, "the file is empty"),
    "text": (lambda d: write(d, b"hello, this is text\n"), ModelError, "a text file that starts with 'hello"),
    "web page": (lambda d: write(d, b"<!DOCTYPE html><html>"), ModelError, "starts with '<!DOCTYPE"),
    "lfs": (
        lambda d: write(d, b"version https://git-lfs.github.com/spec/v1\n"),
        ModelError,
        "Git LFS pointer",
    ),
    "checkpoint": (lambda d: write(d, b"PK\x03\x04" + bytes(99)), ModelError, "PyTorch checkpoint"),
    "ort format": (lambda d: write(d, b"\x18\0\0\0ORTM" + bytes(99)), ModelError, "(.ort)"),
    "noise": (lambda d: write(d, bytes(range(255, -1, -1)) * 9), ModelError, "not an ONNX model"),
    "zeros": (lambda d: write(d, bytes(5000)), ModelError, "not an ONNX model"),
    "a tensor": (
        lambda d: write(d, numpy_helper.from_array(np.zeros(3)).SerializeToString()),
        ModelError,
        "it holds no graph",
    ),
    "too deep for protobuf": (beyond_protobuf, ModelError, "deeper than protobuf reads"),
    "cut in the graph": (
        lambda d: write(d, simple().SerializeToString()[:-20]),
        ModelError,
        "is truncated: at",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_not_a_model(case: str, tmp_path: Path) -> None:
    make, kind, message = FILES[case]
    path = make(tmp_path)
    with pytest.raises(OnnxPruneError) as caught:
        io.load(path)
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    for other in (io.total_bytes, io.file_digest):
        with pytest.raises(kind):
            other(path)


def test_folder_hint_names_the_models_inside(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        io.load(folder_with_model(tmp_path))
    assert "inside.onnx" in caught.value.hint


def test_every_cut_of_a_file_is_a_model_error_or_a_model(tmp_path: Path) -> None:
    data = rich().SerializeToString()
    refused = 0
    for length in range(1, len(data), 7):
        try:
            io.load(write(tmp_path, data[:length]))
        except ModelError:
            refused += 1
    assert refused > 0.8 * len(data) / 7


def test_hostile_names_cannot_reach_the_terminal(tmp_path: Path) -> None:
    model = simple()
    model.graph.node[0].input[1] = "\x1b[2J\n" + "a" * 5000
    with pytest.raises(ModelError) as caught:
        io.load(write(tmp_path, model))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


# ---------------------------------------------------------------- round trips


def test_constants_may_be_called_like_other_nodes(
    tmp_path: Path, build_model: Callable[..., onnx.ModelProto], run_model: Callable[..., Any]
) -> None:
    """As ONNX Runtime has it, which takes them for initializers first."""
    text = "g (float[2] x) => (float[2] y) { a = Constant<value_floats = [1.0, 2.0]> ()  y = Add(x, a) }"
    model = build_model(text, {})
    for item in model.graph.node:
        item.name = "anonymous"
    assert io.load(write(tmp_path, model)).proto == model
    x = np.ones(2, np.float32)
    np.testing.assert_array_equal(run_model(model, {"x": x})[0], [2.0, 3.0])


@pytest.mark.parametrize("make", [simple, rich, large])
def test_load_and_save_keep_every_byte(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    path = write(tmp_path, make())
    written = io.save(io.load(path), tmp_path / "out.onnx")
    assert written == (tmp_path / "out.onnx",)
    assert written[0].read_bytes() == path.read_bytes()


@pytest.mark.parametrize("make", [simple, rich, large])
def test_external_and_back_keeps_every_byte(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    # typed fields move to raw_data only when they leave the model, which those of rich() are too small for
    path = write(tmp_path, make())
    io.save(io.load(path), tmp_path / "ext.onnx", external=True)
    back = io.load(tmp_path / "ext.onnx")
    io.save(back, tmp_path / "inline.onnx", external=False)
    assert (tmp_path / "inline.onnx").read_bytes() == path.read_bytes()


def test_unknown_fields_survive(tmp_path: Path) -> None:
    data = simple().SerializeToString() + b"\xfa\x7f\x03new"  # field 2047 of a future ONNX
    io.save(io.load(write(tmp_path, data)), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == data


def test_load_gives_absolute_path_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, simple())
    monkeypatch.chdir(tmp_path)
    model = io.load("model.onnx")
    assert model.path == tmp_path / "model.onnx"
    assert model.name == "model.onnx"
    assert model.external == ()


def test_save_takes_a_proto(tmp_path: Path) -> None:
    io.save(simple(), tmp_path / "out.onnx")
    assert io.load(tmp_path / "out.onnx").proto == simple()


# ---------------------------------------------------------------- external data, written


def test_auto_external_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = io.load(write(tmp_path, large()))
    assert len(io.save(model, tmp_path / "below.onnx")) == 1
    monkeypatch.setattr(io, "MAX_INLINE_BYTES", 100_000)
    assert len(io.save(model, tmp_path / "above.onnx")) == 2


def test_auto_keeps_external_external(tmp_path: Path) -> None:
    io.save(io.load(write(tmp_path, large())), tmp_path / "ext.onnx", external=True)
    model = io.load(tmp_path / "ext.onnx")
    assert model.external == ("ext.onnx.data",)
    assert len(io.save(model, tmp_path / "again.onnx")) == 2
    assert io.load(tmp_path / "again.onnx").external == ("again.onnx.data",)
    assert (tmp_path / "again.onnx.data").read_bytes() == (tmp_path / "ext.onnx.data").read_bytes()


def test_save_refuses_tensors_that_were_not_loaded(tmp_path: Path) -> None:
    io.save(large(), tmp_path / "ext.onnx", external=True)
    light = onnx.load(tmp_path / "ext.onnx", load_external_data=False)
    with pytest.raises(ModelError, match="initializer 'w' has its data in another file"):
        io.save(light, tmp_path / "out.onnx")


def test_invalid_external_argument(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="external is 'yes'"):
        io.save(simple(), tmp_path / "out.onnx", external="yes")  # type: ignore[arg-type]


# ---------------------------------------------------------------- what a save refuses and leaves behind


def test_existing_target_needs_force(tmp_path: Path) -> None:
    target = write(tmp_path, b"old", "out.onnx")
    with pytest.raises(UsageError, match="already exists") as caught:
        io.save(simple(), target)
    assert "--force" in caught.value.hint
    assert target.read_bytes() == b"old"
    io.save(simple(), target, force=True)
    assert io.load(target).proto == simple()


def test_existing_data_file_needs_force(tmp_path: Path) -> None:
    write(tmp_path, b"old", "out.onnx.data")
    with pytest.raises(UsageError, match=r"out\.onnx\.data already exists"):
        io.save(large(), tmp_path / "out.onnx", external=True)
    io.save(large(), tmp_path / "out.onnx", external=True, force=True)
    io.load(tmp_path / "out.onnx")


@pytest.mark.parametrize("how", ["same", "symlink", "hardlink", "relative"])
def test_input_is_never_the_output(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, simple())
    target = tmp_path / "other.onnx"
    if how == "same":
        target = path
    elif how == "symlink":
        target.symlink_to(path)
    elif how == "hardlink":
        target.hardlink_to(path)
    else:
        (tmp_path / "sub").mkdir()
        monkeypatch.chdir(tmp_path / "sub")
        target = Path("../model.onnx")
    model = io.load(path)
    for arguments in ({"model": model}, {"model": model.proto, "source": path}):
        with pytest.raises(UsageError, match="is the input"):
            io.save(**arguments, path=target, force=True)
    assert path.read_bytes() == simple().SerializeToString()


def test_data_of_the_input_is_never_the_output(tmp_path: Path) -> None:
    io.save(large(), tmp_path / "b.onnx", external=True)
    (tmp_path / "b.onnx").rename(tmp_path / "a.onnx")
    model = io.load(tmp_path / "a.onnx")
    digest = io.file_digest(tmp_path / "a.onnx")
    for target in ("b.onnx", "b.onnx.data"):
        with pytest.raises(UsageError, match="is the input"):
            io.save(model, tmp_path / target, force=True)
    assert io.file_digest(tmp_path / "a.onnx") == digest


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        io.save(simple(), tmp_path / "no" / "out.onnx")


@pytest.mark.parametrize("external", [False, True])
def test_disk_full(external: bool, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = io.load(write(tmp_path, large()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(ResourceError, match=r"no space to write .*out\.onnx"):
            io.save(model, tmp_path / "out.onnx", external=external)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_check_sees_the_complete_model_before_it_is_published(tmp_path: Path) -> None:
    seen = []

    def check(path: Path) -> None:
        assert not (tmp_path / "out.onnx").exists()
        seen.append(io.load(path).proto == large())

    io.save(large(), tmp_path / "out.onnx", external=True, check=check)
    assert seen == [True]


def test_failed_check_publishes_nothing(tmp_path: Path) -> None:
    write(tmp_path, b"old", "out.onnx")

    def check(path: Path) -> None:
        raise ModelError("not as planned")

    with pytest.raises(ModelError, match="not as planned"):
        io.save(large(), tmp_path / "out.onnx", external=True, force=True, check=check)
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


def test_threads_that_save_the_same_target(tmp_path: Path) -> None:
    proto, errors = large(), []

    def work() -> None:
        try:
            io.save(proto, tmp_path / "out.onnx", force=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert io.load(tmp_path / "out.onnx").proto == proto


# ---------------------------------------------------------------- digest and size


def test_digest_and_size_of_an_inline_model(tmp_path: Path) -> None:
    path = write(tmp_path, large())
    assert io.file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert io.total_bytes(path) == path.stat().st_size


def test_digest_and_size_count_external_files(tmp_path: Path) -> None:
    path, data = io.save(large(), tmp_path / "out.onnx", external=True)
    digest = io.file_digest(path)
    assert io.total_bytes(path) == path.stat().st_size + data.stat().st_size
    assert digest == hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert io.file_digest(path) != digest


def test_digest_goes_by_location_and_counts_a_file_once(tmp_path: Path) -> None:
    model = simple()
    locations = ("b", "a", "also_b")
    for location in locations:
        tensor = model.graph.initializer.add(name=location, data_type=TensorProto.INT8, dims=[9])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    write(tmp_path, b"a" * 9, "a")
    write(tmp_path, b"b" * 9, "b")
    (tmp_path / "also_b").symlink_to("b")
    path = write(tmp_path, model)
    assert io.file_digest(path) == hashlib.sha256(path.read_bytes() + b"a" * 9 + b"b" * 9).hexdigest()
    assert io.total_bytes(path) == path.stat().st_size + 18
    assert io.load(path).external == locations


def test_digest_does_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    model = simple()
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    write(tmp_path, b"s" * 64, "secret")
    path = write(tmp_path / "in", model)
    for function in (io.file_digest, io.total_bytes):
        with pytest.raises(ModelError, match="outside the model's folder"):
            function(path)
        assert function(path, allow_external=True)


# ---------------------------------------------------------------- over 2 GiB


@pytest.mark.slow
def test_over_two_gib(tmp_path: Path) -> None:
    """Six weights of 400 MiB: saved external, read back, with bounded memory. Needs 2.5 GB of disk."""
    pid = os.fork()  # a process of its own, for its own peak memory
    if pid == 0:
        try:
            _write_and_read_over_two_gib(tmp_path)
        except BaseException:  # whatever it was, the child must not return into pytest
            os._exit(1)
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert usage.ru_maxrss < 8 * 2**20  # KiB
    light = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert len(light.graph.initializer) == 6
    (tmp_path / "out.onnx.data").unlink()  # pytest keeps the folders of three runs


def _write_and_read_over_two_gib(folder: Path) -> None:
    count, side = 6, 10240
    text = "".join(f"h{i + 1} = MatMul(h{i}, w{i}) " for i in range(count))
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> '
        f"g (float[1, {side}] h0) => (float[1, {side}] h{count}) {{ {text} }}"
    )
    for i in range(count):
        array = np.full((side, side), i, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, f"w{i}"))
        del array
    model = Model(proto)
    del proto
    with pytest.raises(ModelError, match="over 2 GiB"):
        model.to_bytes()
    with pytest.raises(UsageError, match="one file holds at most 2"):
        io.save(model, folder / "out.onnx", external=False)
    path, data = io.save(model, folder / "out.onnx")
    assert data.stat().st_size > 2**31
    del model
    back = io.load(path)
    for i in range(count):
        array = back.array(f"w{i}")
        assert array.shape == (side, side)
        assert (array == i).all()


def test_a_model_in_memory_is_copied(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }"
    proto = build_model(text, {"w": np.eye(4, dtype=np.float32)})
    model = io.load(proto)
    assert model.path is None
    model.set_array("w", np.zeros((4, 4), np.float32))
    assert onnx.numpy_helper.to_array(proto.graph.initializer[0]).sum() == 4


def test_a_model_in_memory_without_its_values(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }"
    proto = build_model(text, {"w": np.eye(4, dtype=np.float32)})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    with pytest.raises(ModelError, match="'w' has its values in a file") as caught:
        io.load(proto)
    assert "give the path" in caught.value.hint
    tensor.ClearField("data_location")
    with pytest.raises(ModelError):
        io.load(proto)


def test_bytes_are_no_path() -> None:
    with pytest.raises(UsageError, match="the model is given as bytes, wanted a path") as caught:
        io.load(b"model.onnx")  # type: ignore[arg-type]
    assert "load_model_from_string" in caught.value.hint
