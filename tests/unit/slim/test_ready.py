"""What can go, and why the rest stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest

import onnxprune.slim.branches
from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.slim import trial
from onnxprune.slim.ready import Ready, prepare

Given = tuple[Model, CalibrationData, Recipe]


def test_everything_that_can_go_is_known(ready: Ready) -> None:
    assert sorted(item.group.kind for item in ready.narrowings) == ["head", "head", "neuron", "neuron"]
    assert len(ready.branches) == 4 and all(effect > 0 for _, effect in ready.branches)
    assert any("normalised" in item.reason for item in ready.skipped)


def test_what_is_excluded_stays(given: Given) -> None:
    model, data, recipe = given
    found = prepare(model, data, replace(recipe, exclude=("layer1.up.weight",)), NullProgress())
    assert not any("layer1/up" in item.group.name for item in found.narrowings)
    assert len(found.branches) == 3  # the one that holds the weight stays as well
    assert any("--exclude" in item.reason for item in found.skipped)


def test_nothing_can_go(given: Given) -> None:
    model, data, recipe = given
    with pytest.raises(ModelError, match="nothing can be removed with --pattern channel") as caught:
        prepare(model, data, replace(recipe, pattern="channel"), NullProgress())
    assert "does not name" in caught.value.hint
    assert re.match(r"\S+ \((neuron|head|width|layer)\): ", caught.value.hint)
    assert "block:4x1" in caught.value.hint


def test_a_branch_that_fails_is_left_alone(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, recipe = given
    monkeypatch.setattr(trial, "bypass", lambda model, branches: onnxprune.slim.branches.bypass(model, []))
    with pytest.raises(ModelError, match="nothing can be removed") as caught:
        prepare(model, data, replace(recipe, pattern="layer"), NullProgress())
    assert "removing it fails: output" in caught.value.hint


def test_weights_that_cannot_be_followed_are_the_reason(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = """g (float[N, 8] x, bool c) => (float[N, 8] y) {
        [choice] y = If(c)<then_branch = t () => (float[N, 8] a) { a = MatMul(x, w) },
                           else_branch = e () => (float[N, 8] b) { b = Relu(x) }> }"""
    model = Model(build_model(text, {"w": np.ones((8, 8), np.float32)}))
    recipe = Recipe(pattern="structured", threads=1)
    data = from_iterable(model, {"x": np.ones((4, 8), np.float32), "c": np.array(True)}, recipe)
    with pytest.raises(ModelError, match="nothing can be removed") as caught:
        prepare(model, data, recipe, NullProgress())
    assert "weights left alone: read inside the subgraph of choice" in caught.value.hint
