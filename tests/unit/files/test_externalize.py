from __future__ import annotations

import io as stdlib_io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import io
from onnxprune.errors import ModelError
from onnxprune.files.externalize import MIN_EXTERNAL_BYTES, Splitter
from tests.unit.files.weights import large

SIMPLE = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 4] y) { [first] h = MatMul(x, w)  [second] y = Relu(h) }"""


def simple() -> onnx.ModelProto:
    model = onnx.parser.parse_model(SIMPLE)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    return model


def write(folder: Path, data: bytes | onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def test_external_layout(tmp_path: Path, run_model: Callable[..., list[np.ndarray]]) -> None:
    path = write(tmp_path, large())
    model = io.load(path)
    before = model.proto.SerializeToString()
    written = io.save(model, tmp_path / "out.onnx", external=True)
    assert written == (tmp_path / "out.onnx", tmp_path / "out.onnx.data")
    assert model.proto.SerializeToString() == before  # the model in memory is as it was

    light = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    entries = {t.name: {e.key: e.value for e in t.external_data} for t in light.graph.initializer}
    assert entries["b"] == entries["yes"] == {}  # small tensors stay
    assert {e["location"] for e in entries.values() if e} == {"out.onnx.data"}
    assert int(entries["w"]["offset"]) % 4096 == 0  # 1 MiB
    assert int(entries["v"]["offset"]) % 64 == 0
    branch = light.graph.node[-1].attribute[0].g
    assert branch.initializer[1].data_location == TensorProto.EXTERNAL
    assert not light.graph.node[0].attribute[0].t.external_data  # attributes only when they must

    x = np.ones((2, 1024), np.float32)
    expected = run_model(path, {"x": x})[0]
    np.testing.assert_array_equal(run_model(tmp_path / "out.onnx", {"x": x})[0], expected)
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_attributes_go_external_when_the_model_would_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_model: Callable[..., list[np.ndarray]]
) -> None:
    path = write(tmp_path, large())
    monkeypatch.setattr(io, "MAX_INLINE_BYTES", 10_000)
    io.save(io.load(path), tmp_path / "out.onnx")
    light = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert light.graph.node[0].attribute[0].t.data_location == TensorProto.EXTERNAL
    x = np.ones((2, 1024), np.float32)
    np.testing.assert_array_equal(run_model(tmp_path / "out.onnx", {"x": x})[0], run_model(path, {"x": x})[0])
    assert io.load(tmp_path / "out.onnx").proto == large()


def test_external_without_large_tensors_is_one_file(tmp_path: Path) -> None:
    assert io.save(simple(), tmp_path / "out.onnx", external=True) == (tmp_path / "out.onnx",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx"]


def test_external_typed_fields_become_raw(tmp_path: Path) -> None:
    model = simple()
    values = np.arange(4096, dtype=np.int32)
    for name, kind in (
        ("ints", TensorProto.INT64),
        ("half", TensorProto.FLOAT16),
        ("four", TensorProto.UINT4),
    ):
        model.graph.initializer.append(helper.make_tensor(name, kind, [4096], values % 16))
    io.save(model, tmp_path / "out.onnx", external=True)
    back = io.load(tmp_path / "out.onnx")
    assert back.external == ("out.onnx.data",)
    for name in ("ints", "half", "four"):
        np.testing.assert_array_equal(back.array(name).astype(np.int32), values % 16)


def tensor(name: str, size: int) -> TensorProto:
    return TensorProto(
        name=name, data_type=TensorProto.UINT8, dims=[size], raw_data=bytes([ord(name)]) * size
    )


def split(*tensors: TensorProto) -> tuple[onnx.ModelProto, bytes]:
    model = simple()
    model.graph.initializer.extend(tensors)
    sink = stdlib_io.BytesIO()
    return Splitter(sink, "m.data", attributes=False).split(model), sink.getvalue()


def test_only_tensors_from_one_kibibyte_leave() -> None:
    light, data = split(tensor("a", MIN_EXTERNAL_BYTES - 1), tensor("b", MIN_EXTERNAL_BYTES))
    assert data == b"b" * MIN_EXTERNAL_BYTES
    assert len(light.graph.initializer[1].raw_data) == MIN_EXTERNAL_BYTES - 1
    assert not light.graph.initializer[2].HasField("raw_data")


def test_alignment_and_padding() -> None:
    light, data = split(tensor("a", 1030), tensor("b", 2**20), tensor("c", 2000))
    places = [{e.key: e.value for e in t.external_data} for t in light.graph.initializer[1:]]
    assert [int(p["offset"]) for p in places] == [0, 4096, 4096 + 2**20]
    assert [int(p["length"]) for p in places] == [1030, 2**20, 2000]
    assert data[:1030] == b"a" * 1030
    assert data[1030:4096] == bytes(4096 - 1030)
    assert data[-2000:] == b"c" * 2000


def test_text_that_is_not_utf8_does_not_stop_a_save() -> None:
    model = simple()
    model.doc_string = "a?c"
    big = tensor("a", 2000)
    big.doc_string = "d?f"
    model.graph.initializer.append(big)
    model.ParseFromString(model.SerializeToString().replace(b"a?c", b"a\xffc").replace(b"d?f", b"d\xfff"))
    light = Splitter(stdlib_io.BytesIO(), "m.data", attributes=False).split(model)
    assert light.doc_string == "a\ufffdc"
    assert light.graph.initializer[1].doc_string == "d\ufffdf"


def test_tensor_whose_data_does_not_fit_is_refused() -> None:
    broken = tensor("a", 2000)
    broken.dims[:] = [2001]
    with pytest.raises(ModelError, match="tensor 'a' holds 2000 bytes, its shape needs 2001"):
        split(broken)


def test_stale_entries_of_the_source_are_not_copied() -> None:
    stale = tensor("a", 2000)
    stale.external_data.add(key="location", value="../elsewhere")
    light, _ = split(stale)
    assert [e.value for e in light.graph.initializer[1].external_data] == ["m.data", "0", "2000"]
