"""What the report says agrees with what was done."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.data import CalibrationData
from onnxprune.model import Model
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.report.report import plain
from onnxprune.slim.ready import Ready
from onnxprune.slim.stage import slim
from onnxprune.slim.summary import parameters, summary


def test_tells_of_groups_and_branches(given: tuple[Model, CalibrationData, Recipe], ready: Ready) -> None:
    model, data, recipe = given
    found = slim(ready, data, recipe, 0.8, NullProgress())
    told = summary([(ready, found)], found.model, recipe)
    before, after = told["multiplications"]
    assert after <= 0.2 * before
    assert told["parameters"] == [parameters(model), parameters(found.model)]
    left = model.index.tensors.keys() & found.model.index.tensors.keys()
    stand = {item.group.name for item in ready.narrowings if left & {p.tensor for p in item.group.parts}}
    inside = {item.group.name for item in ready.narrowings} - stand
    assert inside and stand
    assert {g["name"] for g in told["groups"] if not g["after"]} == {*found.branches, *inside}
    for group in told["groups"]:
        gone = found.removed.get(group["name"], np.zeros(1, bool))
        assert group["name"] not in stand or group["after"] == group["before"] - gone.sum()
        assert group["name"] not in inside or not group["damage"]  # the branch has it
    assert [item["threads"] for item in told["speed"]] == [1]
    assert plain(told) == told | {"kinds": list(told["kinds"])}


def test_parameters_are_all_numbers_but_scalars(given: tuple[Model, CalibrationData, Recipe]) -> None:
    assert parameters(given[0]) == pytest.approx(251_000, rel=0.01)
