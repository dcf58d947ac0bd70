from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.kernels.device_select import (
    Choice,
    best_layout,
    select_device,
    store_for_cuda,
    stored_density,
)
from onnxprune.kernels.devicetable import CUSPARSELT, DeviceTable, Measured
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
    assert found == Choice(LAYOUTS["block-64"], 3.0)
    assert best_layout(weight, table(bitmap_tile_int8=9.0, nm_tile=9.0), 8) is None  # not exact; not 2:4
    assert best_layout(weight, table(delta=2.0), 100) is None  # nothing measured with so many rows


def two_four(own: dict[int, float], library: dict[int, float]) -> DeviceTable:
    """Gains of 2:4 by rows of X: of our kernel and of cuSPARSELt."""
    entries = [
        Measured(name, 128, 128, 0.5, m, 1.0 / gain, 1.0, 1)
        for name, gains in (("nm-tile", own), (CUSPARSELT, library))
        for m, gain in gains.items()
    ]
    return DeviceTable("A GPU", "", 1.0, tuple(entries))


@pytest.mark.parametrize(
    ("batch", "gain", "many"),
    [
        (16, 1.5, 512),  # our kernel, and where cuSPARSELt takes over should X grow
        (300, 0.4, 512),  # cuSPARSELt was measured with more rows alone
        (600, 1.4, 512),
        (512, 0.9, 512),
        (4096, 1.4, 512),
        (10000, None, None),
    ],
)
def test_two_ways_of_two_four(batch: int, gain: float | None, many: int | None) -> None:
    weight = np.zeros((128, 128), np.float16)
    weight[:, ::2] = 1
    table = two_four({32: 1.5, 64: 1.1, 512: 0.4, 4096: 0.3}, {512: 0.9, 4096: 1.4})
    found = best_layout(weight, table, batch)
    assert (found.gain, found.many_rows) == (pytest.approx(gain), many) if found else gain is None
    odd = best_layout(weight[:120], table, batch)  # not for cuSPARSELt
    assert odd is None or (
        odd.many_rows is None and odd.gain in (1.5, pytest.approx(0.4), pytest.approx(0.3))
    )


def test_the_library_multiplies_where_it_was_chosen() -> None:
    """With 600 rows the times of 4096 are the nearest that are not too good; those of 512 do not say so."""
    weight = np.zeros((128, 128), np.float16)
    weight[:, ::2] = 1
    found = best_layout(weight, two_four({512: 1.0, 4096: 0.3}, {512: 0.9, 4096: 1.4}), 600)
    assert found is not None and (found.gain, found.many_rows) == (pytest.approx(1.4), 600)


def test_two_four_where_the_library_never_wins_or_was_not_measured() -> None:
    weight = np.zeros((128, 128), np.float16)
    weight[:, ::2] = 1
    found = best_layout(weight, two_four({32: 1.5, 512: 1.4}, {512: 1.2}), 16)
    assert found is not None and (found.gain, found.many_rows) == (1.5, 0)
    found = best_layout(weight, two_four({32: 1.5}, {}), 16)
    assert found is not None and (found.gain, found.many_rows) == (1.5, None)
    found = best_layout(weight, two_four({32: 1.1}, {512: 1.3}), 16)  # measured with many more rows only
    assert found is not None and found.gain == pytest.approx(1.1)


def test_the_node_says_from_how_many_rows_on(model: Model) -> None:
    """Dense stays what is slower than 1.05 of dense, such as cuSPARSELt with few rows."""
    weight = np.zeros((128, 128), np.float32)
    weight[::2] = 1
    weight[1::4, ::2] = 1
    model.index.tensors["p"].raw_data = np.where(np.arange(128)[:, None] % 2, 0, weight).tobytes()
    table = two_four({32: 1.5, 512: 0.4, 4096: 0.3}, {512: 0.9, 4096: 1.4})
    dense = select_device(model.copy(), ["p"], table, 512)
    assert dense.decisions["p"].reason == "no CUDA kernel is faster"
    assert select_device(model, ["p"], table, 4096).switched == 1
    (node,) = (node for node in model.graph.node if node.op_type == "NMTileMatMul")
    assert {a.name: a.i for a in node.attribute}["many_rows"] == 512


CONVS = """g (float[B, 128, H, 14] x) => (float[B, 128, P, Q] z) {
    y = Conv(x, p) w = Conv<strides=[2, 2]>(y, q) v = Conv(w, r, b) z = Relu(v) }"""


def convolutions(build: Callable[..., onnx.ModelProto], height: str) -> Model:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((128, 128, 1, 1)).astype(np.float32) for name in "pqr"}
    for weight in weights.values():
        weight[rng.random(weight.shape) < 0.8] = 0
    return Model(build(CONVS.replace("H", height), weights | {"b": np.ones(128, np.float32)}))


def test_convolutions(build_model: Callable[..., onnx.ModelProto]) -> None:
    """Images times pixels are the rows; what was measured of matrices says nothing of them."""
    entries = tuple(
        Measured("bitmap-tile", 128, 128, 0.2, 8 * pixels, 1.0, gain, 1, pixels)
        for pixels, gain in ((49, 1.2), (196, 2.0))
    )
    matrices = table(delta=9.0, bitmap_tile=9.0).entries
    measured = DeviceTable("A GPU", "", 1.0, (*entries, *matrices))
    model = convolutions(build_model, "14")
    found = select_device(model, ["p", "q", "r"], measured, 8)
    assert (found.decisions["p"].op, found.decisions["p"].gain) == ("BitmapTileConv", 2.0)
    assert found.decisions["q"].reason == "it has strides or pads, wanted strides of 1 and no pads"
    assert (found.decisions["r"].op, found.decisions["r"].gain) == ("BitmapTileConvRelu", pytest.approx(1.2))
    assert [node.op_type for node in model.graph.node if node.op_type != "Cast"] == [
        "BitmapTileConv", "Conv", "BitmapTileConvRelu",
    ]  # fmt: skip
    more = select_device(convolutions(build_model, "14"), ["p"], measured, 9)
    assert more.decisions["p"].reason.startswith("no CUDA kernel was measured")
    unknown = select_device(convolutions(build_model, "H"), ["p"], measured, 8)
    assert unknown.decisions["p"].reason == "the size of its images is not known: fix the input's"


def test_an_image_of_one_pixel_is_a_row() -> None:
    """For all layouts but those without a Conv."""
    weight = np.zeros((128, 128), np.float16)
    weight[0] = 1
    found = best_layout(weight, table(delta=9.0, bitmap_tile=2.0), 8, 1)
    assert found == Choice(LAYOUTS["bitmap-tile"], 2.0)
    assert best_layout(weight, table(delta=9.0, bitmap_tile=2.0), 8) == Choice(LAYOUTS["delta"], 9.0)


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
