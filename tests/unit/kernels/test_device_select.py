from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.kernels.device_select import best_layout, select_device, store_for_cuda, stored_density
from onnxprune.kernels.devicetable import DeviceTable, Measured
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.storage.device import LAYOUTS


def table(**gains: float) -> DeviceTable:
    """Gains at 64 rows by layout, at any density."""
    entries = [
        Measured(name.replace("_", "-"), 128, 128, density, 64, 1.0, gain, 1)
        for name, gain in gains.items()
        for density in (0.01, 1.0)
    ]
    return DeviceTable("A GPU", "", 1.0, tuple(entries))


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    rng = np.random.default_rng(0)
    weights = {}
    for name in "pqr":
        weights[name] = rng.standard_normal((128, 128)).astype(np.float32)
        weights[name][rng.random((128, 128)) < 0.8] = 0
    weights["q"][0, 0] = 1e6
    text = "g (float[B, 128] x) => (float[B, 128] z) { y = MatMul(x, p) w = MatMul(y, q) v = MatMul(w, r)"
    return Model(build_model(text + " u = MatMul(v, r) z = Relu(u) }", weights))


def test_the_layout_with_the_highest_gain() -> None:
    weight = np.zeros((128, 128), np.float16)
    weight[:64, :64] = 1
    found = best_layout(weight, table(bitmap_tile=1.5, block_64=3.0, delta=2.0), 8)
    assert found == (LAYOUTS["block-64"], 3.0)
    assert best_layout(weight, table(bitmap_tile_int8=9.0, nm_tile=9.0), 8) is None  # not exact; not 2:4
    assert best_layout(weight, table(delta=2.0), 100) is None  # nothing measured with so many rows


def test_density_as_a_table_counts_it() -> None:
    weight = np.zeros((128, 128), np.float16)
    weight[0, 0] = 1
    assert stored_density(LAYOUTS["block-64"], weight, 0.1) == 0.25
    assert stored_density(LAYOUTS["nm-tile"], weight, 0.1) == 0.5
    assert stored_density(LAYOUTS["delta"], weight, 0.1) == 0.1


def test_every_weight_has_its_reason(model: Model) -> None:
    found = select_device(model, ["p", "q", "r"], table(delta=2.0), 8)
    assert (found.decisions["p"].op, found.decisions["p"].gain) == ("DeltaMatMul", 2.0)
    assert found.decisions["q"].reason == "float16 cannot hold its largest value"
    assert found.decisions["r"].reason.startswith("more than one node reads")
    assert "float16" in found.note and "A GPU" in found.note and found.method == "device table"


def test_dense_where_nothing_wins(model: Model) -> None:
    found = select_device(model, ["p"], table(delta=1.04), 8)
    assert found.decisions["p"].reason == "no CUDA kernel is faster" and not found.switched
    assert "runs dense" in found.note
    assert (
        select_device(model, ["p"], table(delta=2.0), 65)
        .decisions["p"]
        .reason.startswith("no CUDA kernel was")
    )
    assert {node.op_type for node in model.graph.node} == {"MatMul", "Relu"}


def test_the_others_are_packed(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table(bitmap_tile=2.0).save(path)
    recipe = Recipe(target_runtime="cuda", batch=8, cuda_table=str(path))
    final, report, selection = store_for_cuda(model, ["p", "r"], recipe)
    assert selection.switched == 1
    assert [entry.name for entry in report.weights] == ["p", "r"]
    assert all(entry.form == "packed" and entry.stored_bytes < entry.dense_bytes for entry in report.weights)
    assert [node.op_type for node in final.graph.node][:3] == ["Gap8Decode", "Cast", "BitmapTileMatMul"] or (
        "BitmapTileMatMul" in [node.op_type for node in final.graph.node]
    )
    assert [node.op_type for node in model.graph.node] == ["MatMul"] * 4 + ["Relu"]
