"""--include and --exclude: whatever a weight is, and whoever reads it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.slim.branches import find_branches
from onnxprune.slim.selected import selected_branches, selected_groups
from onnxprune.structure.find import find_structure
from onnxprune.structure.sample import sample

TEXT = """g (float[6, N, 8] x) => (float[6, N, 4] y) {
    o, h = LSTM<hidden_size=16>(x, W, R) p = Squeeze(o, one)
    a = MatMul(p, w1) b = Add(a, bias) c = Relu(b) d = Mul(c, scale) e = MatMul(d, w2)
    f = MatMul(e, w3) k = Relu(f) s = Add(e, k) y = MatMul(s, w4) }"""
FEEDS = {"x": np.random.default_rng(0).normal(size=(6, 2, 8)).astype(np.float32)}


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    sizes: dict[str, tuple[int, ...]] = {"W": (1, 64, 8), "R": (1, 64, 16), "w1": (16, 24), "bias": (24,)}
    sizes |= {"scale": (24,), "w2": (24, 8), "w3": (8, 8), "w4": (8, 4)}
    rng = np.random.default_rng(1)
    weights = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    return Model(build_model(TEXT, weights | {"one": np.array([1])}))


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ((), (), {16, 24}),
        ((), ("R",), {24}),
        ((), ("LSTM*",), {24}),
        ((), ("bias",), {16}),
        ((), ("Mul(d)",), {16}),
        (("w1", "w2"), (), {24}),  # the recurrent weights are not named; bias and scale go along
        (("w1",), (), set()),
        (("w1", "W", "R"), (), {16}),
    ],
)
def test_groups(model: Model, include: tuple[str, ...], exclude: tuple[str, ...], left: set[int]) -> None:
    recipe = Recipe(pattern="structured", include=include, exclude=exclude)
    groups, skipped = selected_groups(model, find_structure(model, FEEDS), recipe)
    assert {group.units for group in groups if group.kind in ("hidden", "neuron")} - {8} == left
    if include or exclude:
        assert any("--include" in item.reason or "--exclude" in item.reason for item in skipped)


@pytest.mark.parametrize(
    ("include", "exclude", "count"),
    [((), (), 1), ((), ("w3",), 0), ((), ("Relu(k)",), 0), (("w1",), (), 0), (("w3",), (), 1)],
)
def test_branches(model: Model, include: tuple[str, ...], exclude: tuple[str, ...], count: int) -> None:
    found = find_branches(model, sample(model, FEEDS)[0])
    assert [branch.value for branch in found] == ["k"]
    recipe = Recipe(pattern="layer", include=include, exclude=exclude)
    chosen, skipped = selected_branches(model, found, recipe)
    assert (len(chosen), len(skipped)) == (count, 1 - count)
