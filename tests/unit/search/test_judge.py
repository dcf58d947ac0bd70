from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.calibration.data import from_iterable
from onnxprune.errors import DataError
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.search.judge import Judge, as_stored, split_held_out

TEXT = "g (float[N, 8] x) => (float[N, 5] y) { y = MatMul(x, w) }"
X = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    return Model(build_model(TEXT, {"w": W}))


class Fixed:
    """A measure that says what it was told, and counts."""

    def __init__(self, value: float, lower: bool = False, scale: float | None = None) -> None:
        self.value, self.lower, self.scale, self.own_data, self.calls = value, lower, scale, True, 0

    def __call__(self, session: Any, data: Any, *, finite: bool = True) -> float:
        self.calls += 1
        return self.value


def make(model: Model, measure: Any = None, before: float | None = None, **options: Any) -> Judge:
    recipe = Recipe(**options)
    data = from_iterable(model, X, recipe)
    return Judge.make(recipe, model, runtime.session(model.proto, threads=1), data, measure, before)


def test_floor_from_the_dense_model(model: Model) -> None:
    measure = Fixed(80.0)
    judge = make(model, measure, max_drop="1pp", eval="e.py:f", min_agreement=0.9)
    assert (judge.floor.bound, judge.floor.agreement, measure.calls) == (79.0, 0.9, 1)
    judge = make(model, measure, before=70.0, max_drop="1pp", eval="e.py:f")
    assert (judge.floor.bound, judge.floor.agreement, measure.calls) == (69.0, None, 1)
    assert make(model, Fixed(3.0, lower=True), max_drop="10%", eval="e.py:f").floor.bound == pytest.approx(
        3.3
    )


def test_a_metric_without_a_drop_is_no_floor(model: Model) -> None:
    judge = make(model, Fixed(80.0), min_agreement=0.9)
    assert judge.floor.bound is None
    assert judge(judge.session)[0] == 80.0


def test_the_dense_model_agrees_with_itself(model: Model) -> None:
    judge = make(model, min_agreement=1.0)
    assert judge(judge.session) == (None, 1.0)


def test_agreement_is_of_the_best_class(model: Model) -> None:
    other = model.copy()
    other.set_array("w", W[:, ::-1].copy())
    session = runtime.session(other.proto, threads=1)
    wanted = np.mean((X @ W).argmax(1) == (X @ W[:, ::-1]).argmax(1))
    judge = make(model, Fixed(1.0), min_agreement=0.9)
    assert judge(session, metric=0.5) == (0.5, pytest.approx(wanted))


def test_a_model_of_nan_agrees_with_nothing(model: Model) -> None:
    other = model.copy()
    other.set_array("w", np.full_like(W, np.nan))
    assert make(model, min_agreement=0.9)(runtime.session(other.proto, threads=1)) == (None, 0.0)


def test_as_stored_rounds_what_the_file_rounds(model: Model) -> None:
    pruned = model.copy()
    weight = np.where(np.abs(W) < 0.5, 0, W).astype(np.float32)
    pruned.set_array("w", weight)
    layers, _ = find_layers(model, min_size=1)
    assert as_stored(pruned, layers, Recipe()) is pruned
    rounded = as_stored(pruned, layers, Recipe(values="fp16"))
    np.testing.assert_array_equal(rounded.array("w"), weight.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(pruned.array("w"), weight)
    weight[0, 0] = 1e6  # does not fit: the file keeps float32
    pruned.set_array("w", weight)
    assert math.isclose(as_stored(pruned, layers, Recipe(values="fp16")).array("w")[0, 0], 1e6)
    np.testing.assert_array_equal(as_stored(pruned, layers, Recipe(values="fp16")).array("w"), weight)


def test_three_parts_share_no_sample(model: Model) -> None:
    data = from_iterable(model, X, Recipe())
    rest, held_out = data.split(0.5, 0)
    parts = [rest, *split_held_out(held_out, rest, 0)]
    rows = [row.tobytes() for part in parts for batch in part.batches for row in batch["x"]]
    assert [part.samples for part in parts] == [6, 3, 3]
    assert len(set(rows)) == 12


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_samples(model: Model, count: int) -> None:
    data = from_iterable(model, X[:count], Recipe())
    rest, held_out = data.split(0.5, 0)
    with pytest.raises(DataError, match="three samples"):
        split_held_out(held_out if held_out.batches else rest, rest, 0)
