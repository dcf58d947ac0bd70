from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune import runtime
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import ModelError
from onnxprune.kernels import library
from onnxprune.kernels.select import select, without_decoders
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.storage.form import DOMAIN

PACKED = ["wc", "wk", "wm"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.kernels.select.busy", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def data() -> CalibrationData:
    rng = np.random.default_rng(3)
    batches = tuple({"x": rng.standard_normal((4, 8, 9, 9)).astype(np.float32)} for _ in range(2))
    return CalibrationData(batches, 8, False, "data", frozenset({"x"}))


@pytest.fixture
def packed(dense: Model) -> Model:
    model = dense.copy()
    pack(model, PACKED, form="gaps8")
    return model


@pytest.fixture
def with_bench(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(library, "identity", lambda: "a library")
    monkeypatch.setattr(library, "open_session", bench)
    return bench


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "identity", lambda: None)


def ops_of(model: Model) -> list[str]:
    return [node.op_type for node in model.graph.node if node.domain == DOMAIN]


def test_what_wins_is_switched(packed: Model, dense: Model, data: Any, with_bench: Any) -> None:
    with_bench.speed = {"SparseGap8ConvRelu": 2.0, "SparseGap8MatMulRelu": 4.0}
    with_bench.speed |= {"DirectConvRelu": 0.5, "DirectConv": 0.4}
    found = select(packed, dense, data, threads=2)
    assert ops_of(packed) == ["SparseGap8ConvRelu", "Gap8Conv", "SparseGap8MatMulRelu"]
    assert found.method == "measured" and found.note == "" and found.switched == 2
    assert found.speed == {threads: pytest.approx(4 / 2.75, abs=1e-3) for threads in (1, 2)}
    decisions = found.decisions
    assert (decisions["wm"].op, decisions["wm"].gain) == ("SparseGap8MatMulRelu", pytest.approx(4.0))
    assert decisions["wk"].op == "" and decisions["wk"].reason == "a kernel is no faster"
    assert decisions["wd"].op == "" and decisions["wd"].gain == pytest.approx(0.5)
    feed = data.batches[0]
    (wanted,) = runtime.session(dense.proto).run(None, feed)
    (got,) = runtime.session(packed.proto, kernels=False).run(None, feed)
    assert np.allclose(wanted, got, atol=1e-5)


def test_nothing_wins(packed: Model, dense: Model, data: Any, with_bench: Any) -> None:
    before = packed.proto.SerializeToString(deterministic=True)
    found = select(packed, dense, data, threads=2)
    assert found.switched == 0 and found.speed == {} and "no choice of kernels" in found.note
    assert packed.proto.SerializeToString(deterministic=True) == before


def test_faster_alone_but_not_together(packed: Model, dense: Model, data: Any, with_bench: Any) -> None:
    with_bench.speed = {"SparseGap8Conv": 2.0, "SparseGap8ConvRelu": 2.0}
    with_bench.speed |= {"DirectConvRelu": 0.3, "DirectConv": 0.3}
    with_bench.layout = 0.4
    found = select(packed, dense, data, threads=2)
    assert found.switched == 0
    assert "not in this model" in found.decisions["wc"].reason
    assert found.decisions["wc"].gain is not None and found.decisions["wc"].gain > 1.05


def test_a_busy_machine_is_noted(
    packed: Model, dense: Model, data: Any, with_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.kernels.select.busy", lambda: True)
    with_bench.speed = {"SparseGap8MatMulRelu": 4.0}
    assert select(packed, dense, data, threads=1).note.startswith("other programs ran")


def test_the_second_run_decides_the_same(
    packed: Model, dense: Model, data: Any, with_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = packed.copy()
    with_bench.speed = {"SparseGap8MatMulRelu": 4.0}
    first = select(packed, dense, data, threads=2)
    with_bench.speed = {"SparseGap8MatMulRelu": 0.1}  # the machine is in another mood
    made = len(with_bench.made)
    assert select(again, dense, data, threads=2) == first and len(with_bench.made) == made
    assert again.proto.SerializeToString(deterministic=True) == packed.proto.SerializeToString(
        deterministic=True
    )
    monkeypatch.setattr(library, "identity", lambda: "a newer library")
    fresh = dense.copy()
    pack(fresh, PACKED, form="gaps8")
    assert select(fresh, dense, data, threads=2).switched == 0


def test_without_the_cache(packed: Model, dense: Model, data: Any, with_bench: Any, tmp_path: Path) -> None:
    with_bench.speed = {"SparseGap8MatMulRelu": 4.0}
    select(packed, dense, data, threads=2, cache=False)
    assert not list(tmp_path.rglob("*.json"))


def test_one_thread_is_measured_once(packed: Model, dense: Model, data: Any, with_bench: Any) -> None:
    with_bench.speed = {"SparseGap8MatMulRelu": 4.0}
    assert list(select(packed, dense, data, threads=1).speed) == [1]


@pytest.mark.usefixtures("without_library")
def test_the_table_decides_without_a_library(packed: Model, dense: Model, data: Any) -> None:
    found = select(packed, dense, data)
    assert found.method == "table" and found.speed == {} and "no library" in found.note
    # About 25 % are left: enough for all three; dense convolutions are left alone
    assert ops_of(packed) == ["SparseGap8ConvRelu", "SparseGap8Conv", "SparseGap8MatMulRelu"]
    assert found.decisions["wm"].gain == pytest.approx(2.5, abs=0.3)
    assert "wd" not in found.decisions


def test_values_that_cannot_be_seen(
    packed: Model, dense: Model, data: Any, with_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise ModelError("refused")

    monkeypatch.setattr("onnxprune.kernels.select.observe", fails)
    found = select(packed, dense, data)
    assert found.method == "table" and "cannot be measured" in found.note and not with_bench.made


@pytest.mark.usefixtures("without_library")
def test_the_table_is_cautious(dense: Model, data: Any) -> None:
    rng = np.random.default_rng(0)
    for name in PACKED:
        shape = dense.array(name).shape
        dense.set_array(name, (rng.standard_normal(shape) * (rng.random(shape) < 0.6)).astype(np.float32))
    packed = dense.copy()
    pack(packed, PACKED, form="bitmap")
    found = select(packed, dense, data)
    assert found.switched == 0 and {found.decisions[n].reason for n in PACKED} == {"too dense to be faster"}


def test_nothing_to_replace(dense: Model, data: Any, with_bench: Any) -> None:
    found = select(dense.copy(), dense, data)
    assert (found.method, found.switched) == ("none", 0) and not with_bench.made


def test_tables_stay_and_are_not_decoded_for_the_measurement() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64[N] i) => (float[N, 48] y) {
        e = Gather(t, i)  y = MatMul(e, w) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("t", (50, 24)), ("w", (24, 48))):
        array = rng.standard_normal(shape) * (rng.random(shape) < 0.3)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    dense = Model(proto)
    packed = dense.copy()
    pack(packed, ["t", "w"], form="gaps4")
    before = packed.proto.SerializeToString(deterministic=True)
    lean = without_decoders(packed, dense)
    assert [n.op_type for n in lean.graph.node] == ["Gather", "Gap4MatMul"]
    assert [f.name for f in lean.proto.functions] == ["Gap4MatMul"]
    feed = {"i": np.arange(5)}
    same = [runtime.session(m.proto, kernels=False).run(None, feed)[0] for m in (lean, packed)]
    assert np.array_equal(*same)
    assert packed.proto.SerializeToString(deterministic=True) == before


def test_a_refusal_is_reported(with_bench: Any) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64[N] i) => (float[N, 48] y) {
        e = Gather(t, i)  y = MatMul(e, w) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("t", (50, 24)), ("w", (24, 48))):
        array = rng.standard_normal(shape) * (rng.random(shape) < 0.3)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    dense = Model(proto)
    packed = dense.copy()
    pack(packed, ["t", "w"], form="gaps4")
    with_bench.speed = {"SparseGap4MatMul": 2.0}
    data = CalibrationData(({"i": np.arange(5)},), 5, False, "data", frozenset({"i"}))
    found = select(packed, dense, data)
    assert "table" in found.decisions["t"].reason and found.decisions["w"].op == "SparseGap4MatMul"
    assert [n.op_type for n in packed.graph.node] == ["Gap4Decode", "Gather", "SparseGap4MatMul"]


def siamese(reader: str) -> tuple[Model, Model]:
    """Two products and ``reader`` share a weight; return it dense and packed."""
    text = f"""<ir_version: 8, opset_import: ["": 17]> 
        g (float[N, 24] x) => (float[N, 24] y, float[K, M] z) {{
        a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w)  z = {reader} }}"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    array = rng.standard_normal((24, 24)) * (rng.random((24, 24)) < 0.3)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), "w"))
    dense = Model(proto)
    packed = dense.copy()
    pack(packed, ["w"], form="gaps4")
    return dense, packed


ONE = CalibrationData(({"x": np.ones((4, 24), np.float32)},), 4, False, "data", frozenset({"x"}))


def test_nodes_that_share_a_weight_are_chosen_each(with_bench: Any) -> None:
    dense, packed = siamese("Neg(y)")
    with_bench.speed = {"SparseGap4MatMulRelu": 4.0, "SparseGap4MatMul": 3.0}
    found = select(packed, dense, ONE, threads=1)
    assert ops_of(packed) == ["SparseGap4MatMulRelu", "SparseGap4MatMul"]
    decision = found.decisions["w"]
    assert decision.op == "SparseGap4MatMulRelu SparseGap4MatMul" and decision.dense_readers == 0
    assert decision.gain == pytest.approx(3.0)  # the lowest
    assert decision.reason == "measured alone, 2 of the 2 nodes that read the weight"
    assert found.switched == 1


def test_a_dense_reader_beside_kernels_is_reported(with_bench: Any) -> None:
    dense, packed = siamese("Neg(w)")
    with_bench.speed = {"SparseGap4MatMulRelu": 4.0, "SparseGap4MatMul": 3.0}
    found = select(packed, dense, ONE, threads=1)
    assert ops_of(packed) == ["Gap4Decode", "SparseGap4MatMulRelu", "SparseGap4MatMul"]
    decision = found.decisions["w"]
    assert decision.op == "SparseGap4MatMulRelu SparseGap4MatMul" and decision.dense_readers == 1
    assert decision.gain == pytest.approx(3.0) and "once more, dense" in decision.reason


def test_one_of_the_nodes_wins(with_bench: Any) -> None:
    dense, packed = siamese("Neg(y)")
    with_bench.speed = {"SparseGap4MatMulRelu": 4.0, "SparseGap4MatMul": 0.5}
    found = select(packed, dense, ONE, threads=1)
    assert ops_of(packed) == ["Gap4Decode", "SparseGap4MatMulRelu"]
    assert found.decisions["w"].dense_readers == 1
    assert "1 of the 2 nodes" in found.decisions["w"].reason


def test_none_of_the_nodes_wins(with_bench: Any) -> None:
    dense, packed = siamese("Neg(y)")
    before = packed.proto.SerializeToString(deterministic=True)
    found = select(packed, dense, ONE, threads=1)
    assert found.decisions["w"].reason == "a kernel is no faster" and found.switched == 0
    assert packed.proto.SerializeToString(deterministic=True) == before


@pytest.mark.usefixtures("without_library")
def test_the_table_switches_nodes_that_share_a_weight() -> None:
    dense, packed = siamese("Neg(y)")
    found = select(packed, dense, ONE)
    assert ops_of(packed) == ["SparseGap4MatMulRelu", "SparseGap4MatMul"]
    assert found.decisions["w"].reason == "from the table, 2 of the 2 nodes that read the weight"
