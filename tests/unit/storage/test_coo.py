from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.storage import coo

ARRAY = np.array([[0, 1.5, 0], [-2, 0, 3]], np.float32)


def sparse(values: Any, indices: Any, dims: list[int]) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.asarray(values, np.float32), "w"),
        numpy_helper.from_array(np.asarray(indices)),
        dims,
    )


def test_encode() -> None:
    found = coo.encode(ARRAY, "w")
    assert found.values.name == "w" and list(found.dims) == [2, 3]
    assert numpy_helper.to_array(found.indices).tolist() == [1, 3, 5]
    assert numpy_helper.to_array(found.values).tolist() == [1.5, -2, 3]
    assert coo.nbytes(found) == 3 * (4 + 8)
    onnx.checker.check_sparse_tensor(found)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (2, 3), (3, 1, 2)])
def test_decode_inverts_encode(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape).astype(dtype)
    found = coo.decode(coo.encode(array, "w"), "w")
    assert found.dtype == array.dtype and found.shape == shape and found.tobytes() == array.tobytes()


def test_decode_reads_one_index_per_axis() -> None:
    found = coo.decode(sparse([1.5, -2, 3], [[0, 1], [1, 0], [1, 2]], [2, 3]), "w")
    assert np.array_equal(found, ARRAY)


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([1, 3, 6], "outside"),
        ([-1, 3, 5], "outside"),
        ([1, 3, 3], "ascend"),
        ([3, 1, 5], "ascend"),
        ([1, 3], "INT64"),
        ([[0, 1], [1, 0], [1, 3]], "outside"),
        ([[1, 0], [0, 1], [1, 2]], "ascend"),
        (np.array([1, 3, 5], np.int32), "INT32"),
    ],
)
def test_broken_indices(indices: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        coo.decode(sparse([1.5, -2, 3], indices, [2, 3]), "'w'")


def test_truncated_data() -> None:
    broken = coo.encode(ARRAY, "w")
    broken.values.raw_data = broken.values.raw_data[:-1]
    with pytest.raises(ModelError, match="11 bytes"):
        coo.decode(broken, "'w'")


def test_absurd_shape_allocates_nothing() -> None:
    with pytest.raises(ModelError, match="over 2 GiB"):
        coo.decode(sparse([1.5], [7], [2**20, 2**20]), "'w'")


def test_densify_takes_initializers_and_constants() -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y) { a = Add(x, w) y = Add(a, v) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    proto.graph.sparse_initializer.append(coo.encode(ARRAY, "w"))
    proto.graph.node.insert(
        0, helper.make_node("Constant", [], ["v"], sparse_value=coo.encode(ARRAY * 2, ""))
    )
    assert coo.densify(proto.graph) == ["w", "v"]
    assert not proto.graph.sparse_initializer
    assert np.array_equal(numpy_helper.to_array(proto.graph.initializer[0]), ARRAY)
    assert proto.graph.node[0].attribute[0].name == "value"
    assert np.array_equal(numpy_helper.to_array(proto.graph.node[0].attribute[0].t), ARRAY * 2)
    assert coo.densify(proto.graph) == []
