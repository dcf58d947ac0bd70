"""What ``inspect`` says of a model, dense or packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.errors import ModelError
from onnxprune.inspection import LayerInfo, inspect
from onnxprune.io import load, save
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.recipe import Recipe

TEXT = """g (float[N, 12] x, int64[N] ids) => (float[N, 16] y) {
    t = Gather(table, ids)  a = MatMul(x, w1)  s = Add(a, t)  r = Relu(s)
    y = Gemm<transB = 1>(r, w2, b2) }"""


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.normal(size=(32, 24)),
        "w1": rng.normal(size=(12, 24)),
        "w2": rng.normal(size=(16, 24)),
        "b2": np.zeros(16),
    }
    weights["w1"][:, ::3] = 0
    return Model(build_model(TEXT, {name: array.astype(np.float32) for name, array in weights.items()}))


def test_every_field(model: Model) -> None:
    found = inspect(model)
    assert found.inputs == {"x": "FLOAT[N,12]", "ids": "INT64[N]"}
    assert found.outputs == {"y": "FLOAT[N,16]"}
    table, w1, w2 = found.layers
    nodes = [node.nodes for node in found.layers]
    assert w1 == LayerInfo(
        name="w1",
        nodes=nodes[1],
        kind="matmul",
        shape=(12, 24),
        matrix=(1, 24, 12),
        dtype="float32",
        weights=288,
        bytes=1152,
        zeros=96,
        storage="dense",
    )
    assert all(len(names) == 1 for names in nodes) and len(set(nodes)) == 3
    assert (table.kind, table.shape, table.zeros) == ("embedding", (32, 24), 0)
    assert (w2.kind, w2.shape, w2.matrix, w2.bytes) == ("gemm", (16, 24), (1, 16, 24), 16 * 24 * 4)


def test_the_recipe_chooses(model: Model) -> None:
    found = inspect(model, Recipe(exclude=("w2",), min_size=300))
    assert [layer.name for layer in found.layers] == ["table"]
    reasons = {skip.name: skip.reason for skip in found.skipped}
    assert "too small: 288 elements" in reasons["w1"] and "w2" in reasons


def test_a_packed_weight_reads_as_before(model: Model, tmp_path: Path) -> None:
    dense = inspect(model).layers
    layers, _ = find_layers(model)
    packed = model.copy()
    w2 = packed.array("w2").copy()
    w2[np.abs(w2) < 1] = 0
    packed.set_array("w2", w2)
    pack(packed, ["w1", "w2"])
    save(packed, tmp_path / "packed.onnx")
    found = {layer.name: layer for layer in inspect(tmp_path / "packed.onnx").layers}
    assert set(found) == {layer.name for layer in layers}
    assert found["w2"].storage not in ("dense", "") and found["w2"].zeros == w2.size - np.count_nonzero(w2)
    assert found["table"].storage == "dense"
    for before in dense:
        after = found[before.name]
        for name in ("kind", "shape", "matrix", "dtype", "weights", "bytes"):
            assert getattr(after, name) == getattr(before, name), (before.name, name)


def test_the_model_is_left_as_it_is(model: Model, tmp_path: Path) -> None:
    packed = model.copy()
    pack(packed, ["w1"])
    before = packed.to_bytes()
    inspect(packed)
    assert packed.to_bytes() == before


def test_samples(digits_cnn: Path) -> None:
    found = inspect(digits_cnn)
    assert "image" in found.inputs
    assert {layer.kind for layer in found.layers} == {"conv", "gemm"}
    model = load(digits_cnn)
    for layer in found.layers:
        array = model.array(layer.name)
        assert (layer.shape, layer.weights, layer.bytes) == (array.shape, array.size, array.nbytes)
        assert int(np.prod(layer.matrix)) == layer.weights


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        inspect(tmp_path / "bad.onnx")


def test_attention_on_request(digits_transformer: Path, digits_cnn: Path) -> None:
    assert inspect(digits_transformer).attention is None
    found = inspect(digits_transformer, attention=True).attention
    assert found is not None and len(found.blocks) == 2 and not found.gates and not found.rejected
    nothing = inspect(digits_cnn, attention=True).attention
    assert nothing is not None and not nothing.blocks


def test_groups_on_request(digits_transformer: Path, digits_cnn: Path) -> None:
    assert inspect(digits_transformer).structure is None
    found = inspect(digits_transformer, groups=True).structure
    assert found is not None
    assert sorted({group.kind for group in found.groups}) == ["head", "neuron"]
    assert 0 < found.inside < found.weights and any("normalised" in pin.reason for pin in found.pinned)
    whole = inspect(digits_cnn, groups=True).structure
    assert whole is not None and whole.inside > 0.99 * whole.weights
    assert whole.groups[0].tensors[0] == "stem.weight"
