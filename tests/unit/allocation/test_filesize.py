"""Sizes before anything is pruned, against what is really written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.allocation.filesize import rough_bytes, tried_bytes
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.recipe import Recipe

TEXT = "g (float[N, 64] x) => (float[N, 10] y) { a = MatMul(x, w1)  r = Relu(a)  y = MatMul(r, w2) }"


@pytest.fixture(scope="module")
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    rng = np.random.default_rng(0)
    shapes = {"w1": (64, 500), "w2": (500, 10)}
    return Model(build_model(TEXT, {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}))


@pytest.mark.parametrize("options", [{}, {"values": "fp16"}, {"format": "sparse-initializer"}])
def test_both_fall_with_the_zeros_and_agree(model: Model, options: dict[str, str]) -> None:
    recipe, (layers, _) = Recipe(**options), find_layers(model, min_size=16)
    table = []
    for share in (0.8, 0.9, 0.97):
        zeros = {layer.name: round(share * layer.size) for layer in layers}
        table.append((rough_bytes(model, layers, zeros, recipe), tried_bytes(model, layers, zeros, recipe)))
    assert table == sorted(table, reverse=True)
    for rough, tried in table:
        assert -0.05 * rough <= tried - rough < 12_000  # functions, names, shapes; a smaller form


def test_the_trial_leaves_the_model_alone(model: Model) -> None:
    before = model.proto.SerializeToString(deterministic=True)
    layers, _ = find_layers(model, min_size=16)
    tried_bytes(model, layers, {layer.name: layer.size // 2 for layer in layers}, Recipe())
    assert model.proto.SerializeToString(deterministic=True) == before
    assert all(np.count_nonzero(model.array(layer.name)) == layer.size for layer in layers)
