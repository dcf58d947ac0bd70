"""The file format, byte by byte. A failure here means that old files can no longer be read.

Change these bytes only together with ``onnxprune.storage.form.VERSION``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.passes.unpack import unpack
from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN, VERSION, Packed

BITMAP = FORMS["bitmap"]
NAN = float("nan")

# dense array, values, mask bytes, values bytes
ARRAYS: dict[str, tuple[Any, str, str, str]] = {
    "float32": (
        np.array([[0, 1, 0, 0, -2], [0.5, 0, 0, 0, 0], [0, 0, 0, 0, 3]], np.float32),
        "same", "4c02", "00000000 0000803f 000000c0 0000003f 00004040",
    ),
    "float32 as fp16": (
        np.array([[0, 1, 0, 0, -2], [0.5, 0, 0, 0, 0], [0, 0, 0, 0, 3]], np.float32),
        "fp16", "4c02", "0000 003c 00c0 0038 0042",
    ),
    "float16": (np.array([1, 0, 0, 0, 0, 0, 0, 65504], np.float16), "same", "81", "0000 003c ff7b"),
    "bfloat16": (np.array([0, 1, -1], ml_dtypes.bfloat16), "same", "60", "0000 803f 80bf"),
    "float64": (np.array([0, -0.0, 1], np.float64), "same", "20", "0000000000000000 000000000000f03f"),
    "special": (
        np.array([NAN, np.inf, -np.inf, -0.0], np.float32),
        "same", "e0", "00000000 0000c07f 0000807f 000080ff",
    ),
    "all zero": (np.zeros((2, 4), np.float32), "same", "00", "00000000"),
    "none zero": (np.ones(8, np.float16), "same", "ff", "0000" + "003c" * 8),
    "empty": (np.zeros((0, 3), np.float32), "same", "", "00000000"),
    "scalar": (np.array(1, np.float32), "same", "80", "00000000 0000803f"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARRAYS)
def test_bytes(case: str) -> None:
    array, values, mask_bytes, value_bytes = ARRAYS[case]
    packed = BITMAP.encode(array, values=values)
    assert packed.tensors[0].tobytes() == bytes.fromhex(mask_bytes)
    assert packed.tensors[1].tobytes() == bytes.fromhex(value_bytes)


@pytest.mark.parametrize("case", ARRAYS)
def test_reading(case: str) -> None:
    array, values, mask_bytes, value_bytes = ARRAYS[case]
    kind = np.dtype(np.float16) if values == "fp16" else array.dtype
    mask = np.frombuffer(bytes.fromhex(mask_bytes), np.uint8)
    stored = np.frombuffer(bytes.fromhex(value_bytes), kind)
    data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    found = BITMAP.decode(Packed((mask, stored), array.shape, data_type), "w")
    assert np.array_equal(found, array, equal_nan=True) and found.dtype == array.dtype


def golden_model() -> onnx.ModelProto:
    """A packed model as version 1 writes it, without its functions: 4x8, every third weight of 32 is kept."""
    mask = helper.make_tensor("w_mask", TensorProto.UINT8, [4], bytes.fromhex("92492492"), raw=True)
    stored = b"".join(np.float32(i).tobytes() for i in range(12))
    values = helper.make_tensor("w", TensorProto.FLOAT, [12], stored, raw=True)
    node = helper.make_node("BitmapMatMul", ["x", "w_mask", "w"], ["y"], domain="onnxprune", name="n")
    node.attribute.append(helper.make_attribute("shape", [4, 8]))
    node.attribute.append(helper.make_attribute("dtype", 1))
    make = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [make("x", 1, ["N", 4])], [make("y", 1, ["N", 8])], [values, mask])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("onnxprune", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def dense_weight() -> Any:
    array = np.zeros(32, np.float32)
    array[0::3] = np.arange(1, 12)
    return array.reshape(4, 8)


def test_reading_a_model_of_version_1() -> None:
    model = Model(golden_model())
    assert unpack(model) == {"w": "packed"}
    assert np.array_equal(model.array("w"), dense_weight())
    assert (model.graph.node[0].op_type, list(model.graph.node[0].input)) == ("MatMul", ["x", "w"])


def test_writing_a_model_of_version_1(build_model: Callable[..., onnx.ModelProto], monkeypatch: Any) -> None:
    assert (DOMAIN, VERSION) == ("onnxprune", 1)
    monkeypatch.setattr("onnxprune.passes.pack.OVERHEAD_BYTES", 0)
    model = Model(
        build_model("g (float[N, 4] x) => (float[N, 8] y) { y = MatMul(x, w) }", {"w": dense_weight()})
    )
    model.graph.node[0].name = "n"
    pack(model, ["w"], form="bitmap")
    golden = golden_model()
    assert model.graph.node[0] == golden.graph.node[0]
    assert list(model.graph.initializer) == list(golden.graph.initializer)
    assert list(model.proto.opset_import) == list(golden.opset_import)
    assert model.proto.ir_version == 8
    assert [f.name for f in model.proto.functions] == ["BitmapMatMul"]
