from __future__ import annotations

import ml_dtypes  # noqa: F401 - registers the small float types with numpy
import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.files import tensors
from onnxprune.files.tensors import LAYOUT, Found, FoundSparse

KINDS = [number for name, number in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")]


def test_every_type_of_the_installed_onnx_is_known() -> None:
    assert set(LAYOUT) == set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}


@pytest.mark.parametrize("kind", KINDS, ids=tensors.type_name)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8])
def test_sizes_agree_with_onnx(kind: int, count: int) -> None:
    values = np.ones(count, helper.tensor_dtype_to_np_dtype(kind))
    raw = numpy_helper.from_array(values)
    assert raw.data_type == kind
    assert tensors.byte_size(raw, "t") == len(raw.raw_data)
    tensors.check_inline(raw, "t")
    typed = helper.make_tensor("t", kind, [count], values)
    assert not typed.HasField("raw_data")
    tensors.check_inline(typed, "t")
    assert tensors.raw_bytes(typed) == tensors.raw_bytes(raw) == raw.raw_data
    for wrong in (raw, typed):
        wrong.dims[0] = count + 8
        with pytest.raises(ModelError, match=r"^t holds \d+ (bytes|values in \w+), \w+\[\d+\] needs \d+$"):
            tensors.check_inline(wrong, "t")


@pytest.mark.parametrize(
    ("dims", "expected"), [([], 1), ([0], 0), ([3, 0, 5], 0), ([2, 3], 6), ([1] * 32, 1), ([2**58], 2**58)]
)
def test_elements(dims: list[int], expected: int) -> None:
    assert tensors.elements(dims, "t") == expected


@pytest.mark.parametrize("dims", [[-1], [2, -1], [0, -1], [2**60], [2**31, 2**31], [0, 2**60], [1] * 33])
def test_impossible_shapes(dims: list[int]) -> None:
    with pytest.raises(ModelError, match="t has"):
        tensors.elements(dims, "t")


def test_strings_are_counted() -> None:
    words = helper.make_tensor("w", TensorProto.STRING, [2], [b"a", b"b"])
    tensors.check_inline(words, "t")
    words.dims[0] = 3
    with pytest.raises(ModelError, match="holds 2 values in string_data"):
        tensors.check_inline(words, "t")


def test_walk_finds_every_tensor() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[4] x, bool c) => (float[4] y) {
            [k] k = Constant<value = float {1}>()
            y = If(c)<
                then_branch = t () => (float[4] a) { [in] q = Constant<value = float {1}>() a = Mul(q, x) },
                else_branch = e () => (float[4] b) { b = Mul(k, x) }>
        }
        <domain: "local", opset_import: ["": 21]>
        F (p) => (q) { m = Constant<value = float {1}>() q = Mul(p, m) }"""
    )

    def one(name: str) -> TensorProto:
        return numpy_helper.from_array(np.ones(1, np.float32), name)

    model.graph.initializer.append(one("w"))
    model.graph.node[1].attribute[1].g.initializer.append(one("deep"))
    sparse = helper.make_sparse_tensor(one("s"), numpy_helper.from_array(np.zeros(1, np.int64)), [4])
    model.graph.sparse_initializer.append(sparse)
    odd = model.graph.node[1].attribute.add(name="odd", type=onnx.AttributeProto.TENSORS)
    odd.tensors.extend([one("t1"), one("t2")])
    odd.sparse_tensor.CopyFrom(sparse)
    odd.sparse_tensors.append(sparse)
    odd.graphs.add().initializer.append(one("g"))
    hidden = model.graph.node[1].attribute.add(name="hidden", type=onnx.AttributeProto.INT)
    hidden.t.CopyFrom(one("h"))
    default = model.functions[0].attribute_proto.add(name="default", type=onnx.AttributeProto.TENSOR)
    default.t.CopyFrom(one("d"))
    training = model.training_info.add()
    training.initialization.initializer.append(one("init"))
    training.algorithm.initializer.append(one("step"))

    found = list(tensors.walk(model))
    assert sum(isinstance(f, FoundSparse) for f in found) == 3
    where = [f.where for f in found if isinstance(f, Found)]
    assert where == [
        "initializer 'w'",
        "values of sparse initializer 's'",
        "indices of sparse initializer 's'",
        "attribute 'value' of node 'k' (Constant)",
        "attribute 'value' of node 'in' (Constant) in a subgraph of the If node that makes 'y'",
        "initializer 'deep' in a subgraph of the If node that makes 'y'",
        "attribute 'odd' of the If node that makes 'y'",
        "attribute 'odd' of the If node that makes 'y'",
        "values of attribute 'odd' of the If node that makes 'y'",
        "indices of attribute 'odd' of the If node that makes 'y'",
        "values of attribute 'odd' of the If node that makes 'y'",
        "indices of attribute 'odd' of the If node that makes 'y'",
        "initializer 'g' in a subgraph of the If node that makes 'y'",
        "attribute 'hidden' of the If node that makes 'y'",
        "attribute 'value' of the Constant node that makes 'm' in function 'F'",
        "attribute 'default' of the defaults in function 'F'",
        "initializer 'init' in training_info",
        "initializer 'step' in training_info",
    ]
    plain = [f.where for f in found if isinstance(f, Found) and f.is_initializer]
    assert len(plain) == 5  # w, deep, g, init, step
    assert tensors.estimated_bytes(model) == sum(
        len(f.tensor.raw_data) or 4 for f in found if isinstance(f, Found)
    )


def test_estimate_without_initializers() -> None:
    model = onnx.ModelProto()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(100, np.float32)))
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.STRING, [1], [b"abc"]))
    constant = numpy_helper.from_array(np.zeros(10, np.float32))
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=constant))
    assert tensors.estimated_bytes(model) == 443
    assert tensors.estimated_bytes(model, initializers=False) == 40


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(
    ("positions", "fits"), [([0, 11], True), ([], True), ([0, 12], False), ([-1, 2], False)]
)
def test_sparse_indices(flat: bool, positions: list[int], fits: bool) -> None:
    count = len(positions)
    indices = np.array(positions, np.int64)
    if not flat:  # rows of (row, column), outside when the flat position is
        indices = np.stack([indices // 4, indices % 4], axis=1).reshape(count, 2)
    values = numpy_helper.from_array(np.ones(count, np.float32), "s")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices), [3, 4])
    if fits:
        tensors.check_sparse(sparse, "s")
    else:
        with pytest.raises(ModelError, match="point outside"):
            tensors.check_sparse(sparse, "s")


def test_names_in_messages() -> None:
    assert tensors.show("a") == "'a'"
    assert tensors.show("\x1b[2J\n") == "'\\x1b[2J\\n'"
    assert len(tensors.show("x" * 1000)) == 80
    assert tensors.describe(helper.make_node("Relu", ["x"], ["y"], name="n")) == "node 'n' (Relu)"
    assert tensors.describe(helper.make_node("Split", ["x"], ["", "y"])) == "the Split node that makes 'y'"
    assert tensors.type_name(TensorProto.FLOAT) == "FLOAT"
    assert tensors.type_name(99) == "99"
