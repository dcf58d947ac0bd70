"""From a recipe to a smaller model; the whole way is in tests/e2e/test_structured.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration.data import CalibrationData, load_data
from onnxprune.errors import ModelError
from onnxprune.inmemory import session_of
from onnxprune.io import load
from onnxprune.model import Model
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.slim.ready import Ready, prepare
from onnxprune.slim.stage import choose, measured_speed, slim, stages
from onnxprune.slim.summary import parameters, summary

Given = tuple[Model, CalibrationData, Recipe]


@pytest.fixture(scope="module")
def given(samples_dir: Path) -> Given:
    recipe = Recipe(
        pattern="structured,layer",
        data=str(samples_dir / "digits_tokens.npz"),
        samples=64,
        threads=1,
        allocation="error",
        budget="flops",
    )
    model = load(samples_dir / "digits_transformer.onnx")
    return model, load_data(model, recipe), recipe


@pytest.fixture(scope="module")
def ready(given: Given) -> Ready:
    return prepare(*given, NullProgress())


def test_everything_that_can_go_is_known(ready: Ready) -> None:
    assert sorted(item.group.kind for item in ready.narrowings) == ["head", "head", "neuron", "neuron"]
    assert len(ready.branches) == 4 and all(effect > 0 for _, effect in ready.branches)
    assert any("normalised" in item.reason for item in ready.skipped)


def test_branches_and_units_go_together(given: Given, ready: Ready) -> None:
    model, data, recipe = given
    found = slim(ready, data, recipe, 0.6, NullProgress())
    told = summary(ready, found, found.model, recipe)
    before, after = told["multiplications"]
    assert after <= 0.4 * before
    assert told["parameters"] == [parameters(model), parameters(found.model)]
    assert {g["name"] for g in told["groups"] if not g["after"]} == set(found.branches)
    for group in told["groups"]:
        gone = found.removed.get(group["name"], np.zeros(1, bool))
        assert group["kind"] == "layer" or group["after"] == group["before"] - gone.sum()
    session_of(found.model).run(None, dict(data.batches[0]))


def test_more_than_can_go(given: Given, ready: Ready) -> None:
    with pytest.raises(ModelError, match=r"--sparsity 0.9999 of the multiplications"):
        choose(ready, given[2], 0.9999, NullProgress())


def test_nothing_can_go(given: Given) -> None:
    model, data, recipe = given
    with pytest.raises(ModelError, match="nothing can be removed with --pattern channel") as caught:
        prepare(model, data, replace(recipe, pattern="channel"), NullProgress())
    assert "does not name" in caught.value.hint


def test_two_stages() -> None:
    share, rest = stages(Recipe(pattern="head+4x1", sparsity=0.75))
    assert share == pytest.approx(0.5)
    assert rest is not None and (rest.pattern, rest.structured) == ("block:4x1", None)
    assert rest.sparsity == pytest.approx(0.5)
    assert stages(Recipe(pattern="head", sparsity=0.3)) == (0.3, None)


def test_a_model_is_as_fast_as_itself(given: Given, ready: Ready) -> None:
    assert measured_speed(given[0], given[0], ready.feeds, 1)[1] == pytest.approx(1.0, abs=0.5)
