"""Groups whose units cannot go after all: known before anything is chosen, and said."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.slim import ready as making
from onnxprune.slim import stage, trial
from onnxprune.slim.choose import Choice
from onnxprune.slim.ready import Ready, prepare
from onnxprune.slim.stage import note, slim
from onnxprune.structure.find import find_structure

TEXT = """g (float[N, 32] x) => (float[N, 4] y) {
    a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) y = MatMul(d, w2) }"""
RNG = np.random.default_rng(0)
FEEDS = [{"x": RNG.normal(size=(8, 32)).astype(np.float32)} for _ in range(8)]


@pytest.fixture
def proto(build_model: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    sizes = {"w0": (32, 64), "w1": (64, 16), "w2": (16, 4)}
    return build_model(TEXT, {n: RNG.normal(size=s).astype(np.float32) for n, s in sizes.items()})


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of groups whose removal fails."""
    names: list[str] = []
    right = trial.remove_checked

    def wrong(model, structure, removed, feeds, threads=None):  # type: ignore[no-untyped-def]
        good = {name: mask for name, mask in removed.items() if name not in names}
        smaller, done, failed = right(model, structure, good, feeds, threads)
        return smaller, done, failed | {name: "another shape" for name in removed if name in names}

    monkeypatch.setattr(trial, "remove_checked", wrong)
    monkeypatch.setattr(stage, "remove_checked", wrong)
    return names


def prepared(proto: onnx.ModelProto, recipe: Recipe) -> tuple[Ready, CalibrationData]:
    model = Model(proto)
    data = from_iterable(model, FEEDS, recipe)
    return prepare(model, data, recipe, NullProgress()), data


def test_what_fails_is_left_alone_and_named(proto: onnx.ModelProto, broken: list[str]) -> None:
    first, second = (group.name for group in find_structure(Model(proto), FEEDS[0]).groups)
    broken.append(first)
    ready, _ = prepared(proto, Recipe(pattern="neuron", samples=48, threads=1))
    assert [item.group.name for item in ready.narrowings] == [second]
    assert any(p.name == first and "fails: another shape" in p.reason for p in ready.skipped)
    broken.append(second)
    with pytest.raises(ModelError, match="nothing can be removed") as caught:
        prepared(proto, Recipe(pattern="neuron", samples=48, threads=1))
    assert "another shape" in caught.value.hint


@pytest.mark.parametrize("late", [False, True])
def test_the_share_is_still_one_of_what_was_counted_on(
    proto: onnx.ModelProto, broken: list[str], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (group.name for group in find_structure(Model(proto), FEEDS[0]).groups)
    recipe = Recipe(pattern="neuron", samples=48, threads=1, allocation="error")
    if late:  # it passes the trial, and fails with the units that are chosen
        monkeypatch.setattr(making, "failing", lambda *_: {})
    broken.append(first)
    ready, data = prepared(proto, recipe)
    with pytest.raises(ModelError, match=r"50\.0% was asked for") as caught:
        slim(ready, data, recipe, 0.5, NullProgress())
    assert f"{first} stays, since removing its units fails: another shape" in caught.value.hint
    found = slim(ready, data, recipe, 0.05, NullProgress())
    assert list(found.removed) == [second] and bool(found.kept) <= late


def test_a_share_that_was_missed_is_said() -> None:
    recipe = Recipe(pattern="neuron", sparsity=0.5)
    assert not note(recipe, 0.5, Choice({}, 0.5)) and not note(recipe, 0.5, Choice({}, 0.46))
    assert "30.0% of the weights went, 50.0% was asked for: no more" in note(recipe, 0.5, Choice({}, 0.7))
    assert "--round-to" in note(recipe, 0.5, Choice({}, 0.3))


def test_the_report_warns(proto: onnx.ModelProto) -> None:
    report = onnxprune.prune(
        proto, data=FEEDS, pattern="neuron", sparsity=0.1, round_to=32, dry_run=True, threads=1
    )
    assert any("10.0% was asked for: units come in steps" in line for line in report.warnings)
