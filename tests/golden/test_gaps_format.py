"""The file format, byte by byte. A failure here means that old files can no longer be read.

Change these bytes only together with ``onnxprune.storage.form.VERSION``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.passes.unpack import unpack
from onnxprune.storage import FORMS
from onnxprune.storage.form import Packed

GAPS = FORMS["gaps4"]


def far() -> Any:
    array = np.zeros((4, 16), np.float32)
    array[0, 2], array[2, 5], array[3, 4] = 1, -2, 3  # 35 and 15 apart
    return array


# For gaps4: dense array, values, steps bytes, values bytes, span
ARRAYS: dict[str, tuple[Any, str, str, str, int]] = {
    "odd": (
        np.array([[0, 1, 0, 0, -2], [0.5, 0, 0, 0, 0], [0, 0, 0, 0, 3]], np.float32),
        "same", "1139", "0000803f 000000c0 0000003f 00004040", 12,
    ),
    "one": (np.array([0, 0, 1], np.float32), "same", "20", "0000803f 0000803f", 2),
    "fp16": (
        np.array([[0, 1, 0, 0, -2], [0.5, 0, 0, 0, 0], [0, 0, 0, 0, 3]], np.float32),
        "fp16", "1139", "003c 00c0 0038 0042", 12,
    ),
    "far": (far(), "same", "25fff0", "0000803f 00000000 00000000 000000c0 00004040 00004040", 59),
    "special": (
        np.array([-0.0, float("nan"), -np.inf, 0], np.float32),
        "same", "11", "0000c07f 000080ff", 3,
    ),
    "all zero": (np.zeros((2, 4), np.float32), "same", "00", "00000000 00000000", 7),
    "empty": (np.zeros((0, 3), np.float32), "same", "", "", 1),
}  # fmt: skip


# For gaps8.
WIDE: dict[str, tuple[Any, str, str, str, int]] = {
    "far": (far(), "same", "02230f", "0000803f 000000c0 00004040", 62),
    "too far": (
        np.concatenate([np.zeros(300, np.float32), np.ones(1, np.float32)]),
        "same", "ff2d", "00000000 0000803f", 300,
    ),
    "fp16": (np.array([0, 1, 0, -2], np.float32), "fp16", "0102", "003c 00c0", 3),
    "all zero": (np.zeros((2, 4), np.float32), "same", "00", "00000000", 8),
}  # fmt: skip


@pytest.mark.parametrize("case", WIDE)
def test_bytes_of_gaps8(case: str) -> None:
    array, values, step_bytes, value_bytes, span = WIDE[case]
    packed = FORMS["gaps8"].encode(array, values=values)
    assert packed.tensors[0].tobytes() == bytes.fromhex(step_bytes)
    assert packed.tensors[0].shape == packed.tensors[1].shape == (1, 1, len(step_bytes) // 2)
    assert packed.tensors[1].tobytes() == bytes.fromhex(value_bytes)
    assert FORMS["gaps8"].extra(packed) == {"span": [span]}
    assert np.array_equal(FORMS["gaps8"].decode(packed, "w"), array)


@pytest.mark.parametrize("case", ARRAYS)
def test_bytes(case: str) -> None:
    array, values, step_bytes, value_bytes, span = ARRAYS[case]
    packed = GAPS.encode(array, values=values)
    assert packed.tensors[0].tobytes() == bytes.fromhex(step_bytes)
    assert packed.tensors[1].tobytes() == bytes.fromhex(value_bytes)
    assert GAPS.extra(packed) == {"span": [span]}


@pytest.mark.parametrize("case", ARRAYS)
def test_reading(case: str) -> None:
    array, values, step_bytes, value_bytes, _ = ARRAYS[case]
    steps = np.frombuffer(bytes.fromhex(step_bytes), np.uint8)
    stored = np.frombuffer(bytes.fromhex(value_bytes), np.float16 if values == "fp16" else np.float32)
    packed = Packed((steps, stored.reshape(1, 1, -1)), array.shape, TensorProto.FLOAT)
    assert np.array_equal(GAPS.decode(packed, "w"), array, equal_nan=True)


def golden_model() -> onnx.ModelProto:
    """A packed model as version 1 writes it, without its functions: 4x16, three weights."""
    steps = helper.make_tensor("w_steps", TensorProto.UINT8, [3], bytes.fromhex("25fff0"), raw=True)
    stored = np.array([1, 0, 0, -2, 3, 3], np.float32).tobytes()
    values = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 6], stored, raw=True)
    node = helper.make_node("Gap4MatMul", ["x", "w_steps", "w"], ["y"], domain="onnxprune", name="n")
    for name, value in (("shape", [4, 16]), ("span", [59]), ("dtype", 1)):
        node.attribute.append(helper.make_attribute(name, value))
    make = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [make("x", 1, ["N", 4])], [make("y", 1, ["N", 16])], [values, steps]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("onnxprune", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_reading_a_model_of_version_1() -> None:
    model = Model(golden_model())
    assert unpack(model) == {"w": "packed"}
    assert np.array_equal(model.array("w"), far())
    assert (model.graph.node[0].op_type, list(model.graph.node[0].input)) == ("MatMul", ["x", "w"])


def test_writing_a_model_of_version_1(build_model: Callable[..., onnx.ModelProto], monkeypatch: Any) -> None:
    monkeypatch.setattr("onnxprune.passes.pack.OVERHEAD_BYTES", 0)
    model = Model(build_model("g (float[N, 4] x) => (float[N, 16] y) { y = MatMul(x, w) }", {"w": far()}))
    model.graph.node[0].name = "n"
    pack(model, ["w"], form="gaps4")
    golden = golden_model()
    assert model.graph.node[0] == golden.graph.node[0]
    assert list(model.graph.initializer) == list(golden.graph.initializer)
    assert [f.name for f in model.proto.functions] == ["Gap4MatMul"]
