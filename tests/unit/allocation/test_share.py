"""Budgets: weights, multiplications, bytes, time, and a plan from a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.allocation.budget import allocate
from onnxprune.allocation.filesize import tried_bytes
from onnxprune.allocation.result import Measured, Plan
from onnxprune.allocation.share import curves_of, highest, share_out
from onnxprune.allocation.speed import Times, dense_costs, layer_times, relative_times
from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.errors import ModelError
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.plan import measure_layers
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.solvers.patterns import Pattern

TEXT = """g (float[N, 8, 12, 12] x) => (float[N, 32] y) {
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, k)  r = Relu(c)
    d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, l)  s = Relu(d)
    p = GlobalAveragePool(s)  f = Flatten(p)  y = MatMul(f, w) }"""
SHAPES = {"k": (32, 8, 3, 3), "l": (64, 32, 3, 3), "w": (64, 32)}
QUICK = Recipe(min_size=16, batch_size=8, threads=1, solver="sweep", cache=False)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    return Model(build_model(TEXT, {name: noise(*shape) for name, shape in SHAPES.items()}))


@pytest.fixture(scope="module")
def layers(model: Model) -> tuple[Layer, ...]:
    return find_layers(model, min_size=16)[0]


@pytest.fixture(scope="module")
def data(model: Model) -> CalibrationData:
    return from_iterable(model, noise(24, 8, 12, 12), QUICK)


@pytest.fixture(scope="module")
def measured(model: Model, layers: tuple[Layer, ...], data: CalibrationData) -> Measured:
    return measure_layers(model, layers, data, QUICK, NullProgress())


@pytest.fixture
def planned(
    model: Model, layers: tuple[Layer, ...], data: CalibrationData, measured: Measured
) -> Callable[..., Plan]:
    def run(**options: Any) -> Plan:
        recipe = dataclasses.replace(QUICK, **options)
        facts = (
            measure_layers(model, layers, data, recipe, NullProgress()) if "allocation" in options else None
        )
        return share_out(model, layers, data, recipe, facts or measured)

    return run


@pytest.mark.parametrize("options", [{}, {"allocation": "erk"}, {"allocation": "global"}, {"values": "fp16"}])
@pytest.mark.parametrize("size", [70_000, 40_000])
def test_the_size_is_kept_and_nearly_used(
    planned: Callable[..., Plan], model: Model, layers: tuple[Layer, ...], size: int, options: dict[str, Any]
) -> None:
    found = planned(target_size=f"{size / 1000:g}kB", **options)
    took = tried_bytes(model, layers, found.zeros, dataclasses.replace(QUICK, **options))
    assert took <= size
    if "values" not in options:  # half precision comes with a layer's first zero, all at once
        assert took >= 0.98 * size


def test_a_size_that_the_model_has_needs_no_zeros(planned: Callable[..., Plan]) -> None:
    assert set(planned(target_size="1GB").zeros.values()) == {0}


def test_a_size_that_cannot_be(planned: Callable[..., Plan]) -> None:
    with pytest.raises(ModelError, match=r"--target-size 900: .* would still take about 0.0"):
        planned(target_size="900")


def test_multiplications_are_another_budget(
    planned: Callable[..., Plan], model: Model, layers: tuple[Layer, ...], data: CalibrationData
) -> None:
    times = layer_times(model, layers, data.batches[:1])
    found = planned(budget="flops", sparsity=0.6)
    saved = sum(times.multiplications[layer.name] * found.zeros[layer.name] / layer.size for layer in layers)
    assert saved / sum(times.multiplications.values()) == pytest.approx(0.6, abs=0.005)
    assert found.zeros["w"] < planned(sparsity=0.6).zeros["w"]  # its zeros save next to nothing


def test_sparsities_are_a_quarter_nearer_to_their_mean_than_the_least_sum(
    planned: Callable[..., Plan], layers: tuple[Layer, ...], measured: Measured
) -> None:
    recipe = dataclasses.replace(QUICK, sparsity=0.6)
    least = allocate(curves_of(layers, recipe, measured, 0.6), sum(layer.size for layer in layers) * 0.6)
    found = planned(sparsity=0.6).zeros
    assert sum(found.values()) == sum(least.values())
    for layer in layers:
        wanted = 0.75 * least[layer.name] + 0.25 * 0.6 * layer.size
        assert found[layer.name] == pytest.approx(wanted, abs=3)
    errors = planned(sparsity=0.6, allocation="error").zeros  # as the literature has it
    curves = curves_of(layers, dataclasses.replace(recipe, allocation="error"), measured, 0.6)
    assert errors == allocate(curves, sum(errors.values()))


@pytest.mark.parametrize(
    "options", [{}, {"pattern": "block:4x1"}, {"allocation": "erk", "pattern": "block:4x1"}]
)
def test_the_predicted_speed_is_reached(
    planned: Callable[..., Plan],
    model: Model,
    layers: tuple[Layer, ...],
    data: CalibrationData,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = dense_costs(model, layers, data.batches[:1])
    times = Times.of(costs)  # what a busy machine measures would be another model each time
    monkeypatch.setattr("onnxprune.allocation.share.layer_times", lambda *_: times)
    found = planned(target_speedup="1.2x", **options)
    assert 0 < sum(found.zeros.values()) < sum(layer.size for layer in layers)
    assert found.speedup is None or 1.2 * (1 - 1e-9) <= found.speedup < 1.5
    pattern = Pattern.parse(options.get("pattern", "unstructured"))
    faster = [
        layer.name
        for layer in layers
        if relative_times(layer, pattern, np.array([found.zeros[layer.name] / layer.size]))[0] < 1
    ]
    assert faster
    if "allocation" not in options:  # what gains nothing loses nothing
        assert all(found.zeros[layer.name] == 0 for layer in layers if layer.name not in faster)


def test_a_speed_that_cannot_be(planned: Callable[..., Plan]) -> None:
    with pytest.raises(ModelError, match=r"at most .* times faster"):
        planned(target_speedup="50x")
    with pytest.raises(ModelError, match=r"at most .* times faster"):
        planned(target_speedup="50x", allocation="erk")


def test_a_plan_from_a_file(planned: Callable[..., Plan], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    entries = {"k": {"sparsity": 0.25}, "l": {"sparsity": 0.5, "pattern": "block:4x1"}}
    path.write_text(json.dumps({"schema_version": 1, "layers": entries}))
    found = planned(plan=str(path))
    assert found.zeros == {"k": 576, "l": 9216, "w": 0}
    assert found.patterns == {"l": Pattern.parse("block:4x1")}


def test_no_layer_is_emptied_before_all_are() -> None:
    assert highest(0.5) == highest(0.95) == 0.98 and 0.97 < highest(0.96) == 0.99 < highest(0.99) < 1
