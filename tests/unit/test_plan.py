"""How many zeros each layer gets, and when that is measured anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import plan
from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.plan import PROBE_ROWS, Plan, make_plan, probe_batches
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.recipe.choices import ALLOCATIONS

Build = Callable[..., onnx.ModelProto]
TEXT = """g (float[N, 8] x) => (float[N, 7] y) {
    a = MatMul(x, w1)  r = Relu(a)  b = MatMul(r, w2)  s = Relu(b)  y = MatMul(s, w3) }"""
SHAPES = {"w1": (8, 16), "w2": (16, 12), "w3": (12, 7)}
SIZE = sum(a * b for a, b in SHAPES.values())
QUICK = Recipe(min_size=16, batch_size=8, threads=1, solver="sweep", cache=False)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def model(build_model: Build) -> Model:
    return Model(build_model(TEXT, {name: noise(*shape) for name, shape in SHAPES.items()}))


@pytest.fixture(scope="module")
def layers(model: Model) -> tuple[Layer, ...]:
    return find_layers(model, min_size=16)[0]


@pytest.fixture(scope="module")
def data(model: Model) -> CalibrationData:
    return from_iterable(model, noise(48, 8), QUICK)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A cache of its own, and a note of each time that layers are measured."""
    seen: list[str] = []
    real = plan.measure

    def measure(*args: Any, **options: Any) -> Any:
        seen.append("measured")
        return real(*args, **options)

    monkeypatch.setattr(plan, "measure", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return seen


def planned(model: Model, layers: Sequence[Layer], data: CalibrationData, **options: Any) -> Plan:
    return make_plan(model, layers, data, dataclasses.replace(QUICK, **options), NullProgress())


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.777, 0.95])
def test_the_sum_is_exact(
    model: Model, layers: tuple[Layer, ...], data: CalibrationData, allocation: str, sparsity: float
) -> None:
    found = planned(model, layers, data, allocation=allocation, sparsity=sparsity)
    assert list(found.zeros) == [layer.name for layer in layers] == ["w1", "w2", "w3"]
    assert sum(found.zeros.values()) == round(sparsity * SIZE)
    for layer in layers:
        assert 0 <= found.zeros[layer.name] <= layer.size
        if allocation == "uniform":
            assert abs(found.zeros[layer.name] - sparsity * layer.size) < 1
    assert set(found.sensitivity) == (set(SHAPES) if allocation == "sensitivity" else set())
    assert found.cached is False and found.tied == {}


@pytest.mark.parametrize("allocation", ["error", "sensitivity", "global"])
def test_what_does_not_matter_gets_the_zeros(build_model: Build, allocation: str) -> None:
    """w3 is cut to one row in use; the other allocations must see it, uniform does not."""
    weights = {name: noise(*shape) for name, shape in SHAPES.items()}
    weights["w3"][1:] *= 1e-4
    model = Model(build_model(TEXT, weights))
    layers, _ = find_layers(model, min_size=16)
    data = from_iterable(model, noise(48, 8), QUICK)
    found = planned(model, layers, data, allocation=allocation, sparsity=0.5)
    shares = {layer.name: found.zeros[layer.name] / layer.size for layer in layers}
    assert shares["w3"] > 0.8 > 0.6 > shares["w1"]
    assert sum(found.zeros.values()) == round(0.5 * SIZE)


def test_uniform_measures_nothing(
    model: Model, layers: tuple[Layer, ...], data: CalibrationData, calls: list[str]
) -> None:
    planned(model, layers, data, allocation="uniform")
    assert calls == []


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.4, None])
def test_nm_is_all_or_nothing(
    model: Model, layers: tuple[Layer, ...], data: CalibrationData, allocation: str, sparsity: float | None
) -> None:
    found = planned(model, layers, data, allocation=allocation, pattern="2:4", sparsity=sparsity)
    full = {layer.name: layer.size // 2 for layer in layers}
    assert all(zeros in (0, full[name]) for name, zeros in found.zeros.items())
    wanted = round((0.5 if sparsity is None else sparsity) * SIZE)
    assert abs(sum(found.zeros.values()) - wanted) <= max(full.values()) / 2
    if sparsity is None:
        assert found.zeros == full


def test_nm_stops_at_the_nearest_total(
    model: Model, layers: tuple[Layer, ...], data: CalibrationData
) -> None:
    """101 zeros are wanted, layers can have 64, 96 and 42: 64 + 42 is nearer than 64."""
    found = planned(model, layers, data, allocation="uniform", pattern="2:4", sparsity=0.25)
    assert found.zeros == {"w1": 64, "w2": 0, "w3": 42}


def test_nm_spares_the_layer_that_matters_most(
    model: Model, layers: tuple[Layer, ...], data: CalibrationData
) -> None:
    found = planned(model, layers, data, allocation="sensitivity", pattern="2:4", sparsity=0.25)
    cost = {layer.name: found.sensitivity[layer.name] / (layer.size / 2) for layer in layers}
    pruned = [name for name, zeros in found.zeros.items() if zeros]
    assert 0 < len(pruned) < len(layers)
    assert max(cost[name] for name in pruned) <= min(cost[name] for name in cost if name not in pruned)


def test_nm_leaves_incomplete_groups_out_of_the_count(build_model: Build) -> None:
    model = Model(
        build_model("g (float[N, 10] x) => (float[N, 6] y) { y = MatMul(x, w) }", {"w": noise(10, 6)})
    )
    layers, _ = find_layers(model, min_size=16)
    data = from_iterable(model, noise(16, 10), QUICK)
    assert planned(model, layers, data, allocation="uniform", pattern="2:4").zeros == {"w": 6 * 2 * 2}


class TestTied:
    TEXT = "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }"

    @pytest.mark.parametrize("allocation", ["uniform", "sensitivity"])
    def test_later_uses_are_measured_and_never_cached(
        self, build_model: Build, calls: list[str], allocation: str
    ) -> None:
        """The statistics of later uses are too large for the cache, and the solver needs them."""
        model = Model(build_model(self.TEXT, {"w": noise(8, 8)}))
        layers, _ = find_layers(model, min_size=16)
        data = from_iterable(model, noise(32, 8), QUICK)
        for _ in range(2):
            found = planned(model, layers, data, allocation=allocation, sparsity=0.5, cache=True)
            assert found.zeros == {"w": 32} and not found.cached
            assert found.tied["w"].n > 0 and found.tied["w"].H.any()
        assert len(calls) == (2 if allocation == "sensitivity" else 0)  # rules measure no curves


class TestProbes:
    def data(self, counts: Sequence[int]) -> CalibrationData:
        return CalibrationData(
            tuple({"x": np.zeros((count, 2), np.float32)} for count in counts), sum(counts), False, "test"
        )

    @pytest.mark.parametrize("rows", [1, 8, 16, 64, 300])
    @pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 17, 64])
    def test_at_most_half_and_spread(self, count: int, rows: int) -> None:
        found = probe_batches(self.data([rows] * count), [None] * count)
        assert found == sorted(set(found)) and found
        assert found[0] >= 0 and found[-1] < count
        assert len(found) <= max(1, min(count // 2, PROBE_ROWS))
        if count > 1:
            assert len(found) < count
        edges = np.array([-0.5, *found, count - 0.5])
        assert np.diff(edges).max() <= 1.5 * count / len(found) + 1  # no long stretch without one

    def test_as_many_as_the_rows_ask_for(self) -> None:
        assert len(probe_batches(self.data([PROBE_ROWS] * 20), [None] * 20)) == 1
        assert len(probe_batches(self.data([PROBE_ROWS // 2] * 20), [None] * 20)) == 2
        assert len(probe_batches(self.data([1] * 20), [None] * 20)) == 10  # at most half
        assert len(probe_batches(self.data([1] * 300), [None] * 300)) == PROBE_ROWS

    def test_only_real_tokens_count(self) -> None:
        mask = np.zeros((4, PROBE_ROWS), bool)
        full = probe_batches(self.data([4] * 20), [~mask] * 20)
        mask[:, 0] = True
        padded = probe_batches(self.data([4] * 20), [mask] * 20)
        assert len(full) == 1 and len(padded) == 10


class TestCache:
    def test_the_second_call_measures_nothing(
        self, model: Model, layers: tuple[Layer, ...], data: CalibrationData, calls: list[str]
    ) -> None:
        first = planned(model, layers, data, cache=True, sparsity=0.6)
        second = planned(model, layers, data, cache=True, sparsity=0.6)
        assert calls == ["measured"]
        assert not first.cached and second.cached
        assert first.zeros == second.zeros and first.sensitivity == second.sensitivity

    def test_another_sparsity_takes_the_same_measurements(
        self, model: Model, layers: tuple[Layer, ...], data: CalibrationData, calls: list[str]
    ) -> None:
        planned(model, layers, data, cache=True, sparsity=0.6)
        found = planned(model, layers, data, cache=True, sparsity=0.8)
        assert calls == ["measured"] and found.cached
        assert sum(found.zeros.values()) == round(0.8 * SIZE)

    @pytest.mark.parametrize(
        "options",
        [
            {"seed": 1},
            {"damping": 0.1},
            {"solver": "admm"},
            {"criterion": "wanda"},
            {"allocation": "error"},
            {"refit": False},
            {"pattern": "2:4"},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_settings_that_matter_are_measured_again(
        self,
        model: Model,
        layers: tuple[Layer, ...],
        data: CalibrationData,
        calls: list[str],
        options: dict[str, Any],
    ) -> None:
        planned(model, layers, data, cache=True)
        assert not planned(model, layers, data, cache=True, **options).cached
        assert len(calls) == 2

    def test_another_weight_or_sample_is_measured_again(
        self, model: Model, layers: tuple[Layer, ...], data: CalibrationData, calls: list[str]
    ) -> None:
        planned(model, layers, data, cache=True)
        other = model.copy()
        w2 = other.array("w2").copy()
        w2[0, 0] += np.float32(1)
        other.set_array("w2", w2)
        assert not planned(other, layers, data, cache=True).cached
        x = np.concatenate([batch["x"] for batch in data.batches])
        x[3, 3] += 1
        assert not planned(model, layers, from_iterable(model, x, QUICK), cache=True).cached
        assert len(calls) == 3
        assert planned(model, layers, data, cache=True).cached

    def test_another_list_of_layers_is_measured_again(
        self, model: Model, layers: tuple[Layer, ...], data: CalibrationData, calls: list[str]
    ) -> None:
        planned(model, layers, data, cache=True)
        found = planned(model, layers[:2], data, cache=True, sparsity=0.5)
        assert len(calls) == 2 and list(found.zeros) == ["w1", "w2"]

    @pytest.mark.parametrize(
        "text",
        [b"", b"{", b"\xff\xfe", b"[]", b"{}", b"null", b'{"output": {}}', b'{"output": 3, "error": {}}'],
    )
    def test_a_damaged_file_is_measured_again(
        self,
        model: Model,
        layers: tuple[Layer, ...],
        data: CalibrationData,
        calls: list[str],
        tmp_path: Path,
        text: bytes,
    ) -> None:
        first = planned(model, layers, data, cache=True)
        (file,) = (tmp_path / "cache").rglob("*.json")
        file.write_bytes(text)
        again = planned(model, layers, data, cache=True)
        assert len(calls) == 2 and not again.cached and again.zeros == first.zeros
        assert planned(model, layers, data, cache=True).cached  # and it is whole again

    @pytest.mark.parametrize(
        "text",
        [
            b'{"output": {}, "error": {}}',
            b'{"output": {"w1": [1, 2]}, "error": {"w1": [1, 2]}}',
            b'{"output": {"w1": [], "w2": [], "w3": []}, "error": {"w1": [], "w2": [], "w3": []}}',
        ],
        ids=["no layer", "one layer", "no level"],
    )
    def test_an_incomplete_file_is_measured_again(
        self,
        model: Model,
        layers: tuple[Layer, ...],
        data: CalibrationData,
        calls: list[str],
        tmp_path: Path,
        text: bytes,
    ) -> None:
        first = planned(model, layers, data, cache=True)
        (file,) = (tmp_path / "cache").rglob("*.json")
        file.write_bytes(text)
        again = planned(model, layers, data, cache=True)
        assert len(calls) == 2 and again.zeros == first.zeros

    def test_off(
        self,
        model: Model,
        layers: tuple[Layer, ...],
        data: CalibrationData,
        calls: list[str],
        tmp_path: Path,
    ) -> None:
        for _ in range(2):
            assert not planned(model, layers, data, cache=False).cached
        assert len(calls) == 2 and not (tmp_path / "cache").exists()

    def test_a_cache_that_cannot_be_written_costs_only_time(
        self,
        model: Model,
        layers: tuple[Layer, ...],
        data: CalibrationData,
        calls: list[str],
        tmp_path: Path,
    ) -> None:
        (tmp_path / "cache").write_text("a file where the folder should be")
        for _ in range(2):
            found = planned(model, layers, data, cache=True, sparsity=0.5)
            assert sum(found.zeros.values()) == round(0.5 * SIZE)
        assert len(calls) == 2
