"""From a recipe to a smaller model; the whole way is in tests/e2e/test_structured.py."""

from __future__ import annotations

import pytest

from onnxprune.calibration.data import CalibrationData
from onnxprune.inmemory import session_of
from onnxprune.model import Model
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.slim.gains import multiplications
from onnxprune.slim.ready import Ready
from onnxprune.slim.stage import part_of, slim, stages

Given = tuple[Model, CalibrationData, Recipe]


def test_branches_and_units_go_together(given: Given, ready: Ready) -> None:
    model, data, recipe = given
    found = slim(ready, data, recipe, 0.8, NullProgress())
    assert found.branches and found.removed and not found.kept
    assert multiplications(found.model, ready.feeds) <= 0.2 * multiplications(model, ready.feeds)
    session_of(found.model).run(None, dict(data.batches[0]))


def test_two_stages() -> None:
    share, rest = stages(Recipe(pattern="head+4x1", sparsity=0.75))
    assert share == pytest.approx(0.5)
    assert rest is not None and (rest.pattern, rest.structured) == ("block:4x1", None)
    assert rest.sparsity == pytest.approx(0.5)
    assert stages(Recipe(pattern="head", sparsity=0.3)) == (0.3, None)


def test_rounds_multiply_to_the_whole() -> None:
    recipe = Recipe(pattern="head", finetune=True, schedule="cubic:3", target_speedup="2x")
    parts = [part_of(recipe, 0.5, number) for number in (1, 2, 3)]
    kept, speed = 1.0, 1.0
    for step, share in parts:
        kept, speed = kept * (1 - share), speed * (step.speedup or 0)
    assert kept == pytest.approx(0.5) and speed == pytest.approx(2.0, rel=1e-4)
    assert parts[0][1] > parts[1][1] > parts[2][1] > 0
    assert part_of(Recipe(pattern="head"), 0.3, 1)[1] == pytest.approx(0.3)
