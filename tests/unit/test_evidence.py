"""Gradients for criteria: in each layer's matrix view, and refused with the way out."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.errors import DataError, ModelError, ResourceError
from onnxprune.evidence import MOST_SAMPLES, check_torch, collect_slopes
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.scoring.evidence import Slopes
from tests.unit.finetune.networks import calibration, parse, residual_net

RECIPE = Recipe(criterion="fisher", threads=1)


def collected(model: Model, data: CalibrationData, recipe: Recipe = RECIPE) -> dict[str, Slopes]:
    layers, _ = find_layers(model, min_size=16)
    return collect_slopes(model, layers, data, recipe, NullProgress())


def test_in_the_view_of_each_layer() -> None:
    model = residual_net()
    found = collected(model, calibration(model))
    layers, _ = find_layers(model, min_size=16)
    assert set(found) == {layer.name for layer in layers}
    for layer in layers:
        for part in (found[layer.name].first, found[layer.name].second, found[layer.name].taylor):
            assert part.shape == layer.view.matrix and part.dtype == np.float32
        assert (found[layer.name].second > 0).any()
        np.testing.assert_array_less(found[layer.name].first ** 2, found[layer.name].second * 1.001 + 1e-12)


def test_a_transposed_weight_by_hand() -> None:
    """Features with Gaussian answers: the gradient is x times noise, in rows of the output features."""
    W = np.arange(1, 25, dtype=np.float32).reshape(3, 8)
    model = parse("g (float[N, 3] x) => (float[N, 8] y) { y = MatMul(x, W) }", {"W": W})
    x = np.tile(np.array([[1, 2, 0]], np.float32), (MOST_SAMPLES, 1))
    found = collected(model, from_iterable(model, x, Recipe()))["W"]
    assert found.second.shape == (1, 8, 3)
    np.testing.assert_allclose(found.second[0, :, 1], 4 * found.second[0, :, 0], rtol=1e-5)
    assert (found.second[0, :, 2] == 0).all()
    # E |w g| = |w| E |g|, the same E |g| for the weights of one output
    taylor = found.taylor[0] / np.abs(W.T)
    np.testing.assert_allclose(taylor[:, 1], 2 * taylor[:, 0], rtol=1e-5)


def test_nothing_is_done_unless_it_is_needed() -> None:
    model = residual_net()
    assert collected(model, calibration(model), replace(RECIPE, criterion="obs+wanda")) == {}


def test_the_same_twice() -> None:
    model = residual_net()
    first, second = (collected(model, calibration(model)) for _ in range(2))
    for name, slopes in first.items():
        np.testing.assert_array_equal(slopes.second, second[name].second)


class TestCache:
    @pytest.fixture
    def measured(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
        """One entry for each time that gradients were collected."""
        from onnxprune.finetune import slopes

        real, calls = slopes.slopes, list[int]()

        def counted(*args: Any, **options: Any) -> Any:
            calls.append(1)
            return real(*args, **options)

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(slopes, "slopes", counted)
        return calls

    def test_another_criterion_needs_the_same_ones(self, measured: list[int]) -> None:
        model = residual_net()
        first = collected(model, calibration(model))
        again = collected(model, calibration(model), replace(RECIPE, criterion="obs+taylor"))
        assert measured == [1] and list(again) == list(first)
        for name, slopes in first.items():
            for part in ("first", "second", "taylor"):
                known, wanted = getattr(again[name], part), getattr(slopes, part)
                assert known.dtype == wanted.dtype and known.tobytes() == wanted.tobytes()

    def test_what_they_depend_on(self, measured: list[int]) -> None:
        model, other = residual_net(), residual_net(1)
        collected(model, calibration(model))
        collected(other, calibration(other))
        collected(model, calibration(model, 40))
        collected(model, calibration(model), replace(RECIPE, seed=1))
        layers, _ = find_layers(model, min_size=16)
        collect_slopes(model, layers[1:], calibration(model), RECIPE, NullProgress())
        assert len(measured) == 5
        collected(model, calibration(model), replace(RECIPE, cache=False))
        assert len(measured) == 6

    def test_damaged(self, measured: list[int], tmp_path: Path) -> None:
        model = residual_net()
        first = collected(model, calibration(model))
        (path,) = (tmp_path / "onnxprune" / "arrays").iterdir()
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        again = collected(model, calibration(model))
        assert len(measured) == 2 and path.read_bytes() == whole
        assert all(np.array_equal(again[name].second, slopes.second) for name, slopes in first.items())


def test_without_torch_it_says_which_criterion(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    with pytest.raises(ResourceError, match="taylor needs torch") as caught:
        check_torch(Recipe(criterion="obs+taylor"))
    assert "pip install torch" in str(caught.value.hint) and "wanda" in str(caught.value.hint)
    check_torch(Recipe(criterion="obs+wanda"))


def test_an_operator_that_torch_cannot_run() -> None:
    model = parse(
        "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, W) y = Dropout(a) }",
        {"W": np.ones((8, 8), np.float32)},
    )
    for node in model.graph.node:
        if node.op_type == "Dropout":
            node.domain, node.op_type = "acme", "Magic"
    with pytest.raises(ModelError, match=r"fisher needs gradients, but: .*Magic") as caught:
        collected(Model(model.proto), from_iterable(model, np.ones((4, 8), np.float32), Recipe()))
    assert "criteria without gradients: obs, wanda, magnitude" in str(caught.value.hint)


def test_a_weight_that_no_output_depends_on_smoothly() -> None:
    text = """g (float[N, 8] x) => (float[N, 8] y, int64[N, 1] k) {
        y = MatMul(x, W) b = MatMul(x, V) k = ArgMax<axis = 1>(b) }"""
    weights = {name: np.eye(8, dtype=np.float32) for name in ("W", "V")}
    model = parse(text, weights)
    with pytest.raises(ModelError, match="'V'"):
        collected(model, from_iterable(model, np.ones((4, 8), np.float32), Recipe()))


def test_batches_that_do_not_come_apart() -> None:
    model = parse(
        "g (float[4, 8] x) => (float[4, 8] y) { y = MatMul(x, W) }", {"W": np.eye(8, dtype=np.float32)}
    )
    with pytest.raises(DataError, match="takes 4 at once"):
        collected(model, from_iterable(model, [{"x": np.ones((4, 8), np.float32)}], Recipe()))
