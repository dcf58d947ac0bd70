from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.errors import DataError
from onnxprune.measure import Measure, find_measure
from onnxprune.model import Model
from onnxprune.recipe import Recipe

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 4)).astype(np.float32)
EYE = np.eye(4, dtype=np.float32)
LINE = "g (float[N, 4] x) => (float[N, 4] logits) { logits = MatMul(x, w) }"
SOFT = "g (float[N, 4] x) => (float[N, 4] p) { y = MatMul(x, w)  p = Softmax(y) }"
STEPS = "g (float[N, T, 4] x) => (float[N, T, 4] logits) { logits = MatMul(x, w) }"
TURNED = (
    "g (float[N, T, 4] x) => (float[T, N, 4] logits) { y = MatMul(x, w) logits = Transpose<perm=[1,0,2]>(y) }"
)
MASKED = (
    "g (float[N, T, 4] x, int64[N, T] attention_mask) => (float[N, T, 4] logits) "
    "{ m = Cast<to=1>(attention_mask)  a = Unsqueeze(m, axes)  b = Mul(x, a)  logits = MatMul(b, w) }"
)


class Setting:
    """A model whose output is its input, with labelled data."""

    def __init__(self, model: Model, feeds: Any, metric: str) -> None:
        self.recipe = Recipe(metric=metric, labels="label", batch_size=8)
        self.model, self.session = model, runtime.session(model.proto, threads=1)
        self.data = from_iterable(model, feeds, self.recipe)

    def measure(self) -> Measure:
        found = find_measure(self.recipe, self.model, self.session, self.data, self.data)
        assert found is not None
        return found

    def value(self) -> float:
        return self.measure()(self.session, self.data)


@pytest.fixture
def setting(build_model: Callable[..., onnx.ModelProto]) -> Callable[..., Setting]:
    def make(text: str, metric: str, labels: Any, **inputs: Any) -> Setting:
        weights = {"w": EYE} | ({"axes": np.array([2])} if "axes" in text else {})
        return Setting(Model(build_model(text, weights)), {**inputs, "label": labels}, metric)

    return make


def test_accuracy_over_batches(setting: Callable[..., Setting]) -> None:
    labels = X.argmax(1)
    labels[:5] = (labels[:5] + 1) % 4
    labels[5] = -100  # no label
    found = setting(LINE, "accuracy", labels, x=X)
    assert len(found.data.batches) == 3
    assert found.value() == pytest.approx(14 / 19)
    measure = found.measure()
    assert (measure.lower, measure.scale, measure.own_data) == (False, 1.0, False)


def test_perplexity_of_probabilities_is_that_of_their_logits(setting: Callable[..., Setting]) -> None:
    labels = RNG.integers(0, 4, 20)
    one, other = (setting(text, "perplexity", labels, x=X).value() for text in (LINE, SOFT))
    p = np.exp(X.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    assert one == pytest.approx(np.exp(-np.log(p[np.arange(20), labels]).mean()), rel=1e-5)
    assert other == pytest.approx(one, rel=1e-5)


def test_values_take_integers_too(setting: Callable[..., Setting]) -> None:
    labels = RNG.integers(0, 5, (20, 4))
    found = setting(LINE, "rmse", labels, x=X)
    assert found.value() == pytest.approx(np.sqrt(((X - labels) ** 2).mean()), rel=1e-5)
    assert found.measure().lower
    rows = (X * labels).sum(1) / np.linalg.norm(X, axis=1) / np.linalg.norm(labels, axis=1)
    assert setting(LINE, "cosine", labels, x=X).value() == pytest.approx(rows.mean(), rel=1e-5)


def test_tokens_that_are_padding_do_not_count(setting: Callable[..., Setting]) -> None:
    x = RNG.normal(size=(6, 5, 4)).astype(np.float32)
    mask = np.ones((6, 5), dtype=np.int64)
    mask[:, 3:] = 0
    labels = x.argmax(2)
    labels[:, 3:] = (labels[:, 3:] + 1) % 4
    labels[0, 0] = (labels[0, 0] + 1) % 4
    found = setting(MASKED, "accuracy", labels, x=x, attention_mask=mask)
    assert found.value() == pytest.approx(17 / 18)


@pytest.mark.parametrize("text", [STEPS, TURNED])
def test_text_finds_steps_of_classes(setting: Callable[..., Setting], text: str) -> None:
    best = np.array([[1, 1, 0, 2, 3], [0, 3, 3, 0, 0], [2, 0, 2, 0, 0]])
    labels = np.array([[1, 2, 3], [1, -100, -100], [2, 2, -100]])
    found = setting(text, "character-accuracy", labels, x=np.eye(4, dtype=np.float32)[best])
    assert found.value() == pytest.approx((1 + 0 + 1) / 3)


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        ("accuracy", RNG.normal(size=20), "wants class numbers"),
        ("accuracy", np.full(20, 7), "class number 7"),
        ("accuracy", np.zeros((20, 3), dtype=int), "fits no output"),
        ("accuracy", np.full(20, -100), "all labels are -100"),
        ("spearman", RNG.normal(size=20), "fits no output"),
        ("character-accuracy", np.zeros((20, 3), dtype=int), "no output's text"),
    ],
)
def test_labels_that_do_not_fit(
    setting: Callable[..., Setting], metric: str, labels: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        setting(LINE, metric, labels, x=X).value()


def test_what_is_not_finite_is_refused_or_handed_on(setting: Callable[..., Setting]) -> None:
    found = setting(LINE, "rmse", X, x=X)
    measure, broken = found.measure(), found.model.copy()
    broken.set_array("w", EYE * np.nan)
    session = runtime.session(broken.proto, threads=1)
    assert np.isnan(measure(session, found.data, finite=False))
    with pytest.raises(DataError, match="--metric rmse of the model is nan"):
        measure(session, found.data)


def test_functions_bring_their_own_data(tmp_path: Path, build_model: Callable[..., onnx.ModelProto]) -> None:
    path = tmp_path / "e.py"
    path.write_text(
        "def f(session):\n    return len(session.get_inputs())\ndef g(session):\n    return float('nan')\n"
    )
    model = Model(build_model(LINE, {"w": EYE}))
    session = runtime.session(model.proto, threads=1)
    nothing = CalibrationData((), 0, False, "")
    assert find_measure(Recipe(), model, session, nothing, nothing) is None
    measure = find_measure(Recipe(eval=f"{path}:f"), model, session, nothing, nothing)
    assert measure is not None and measure.own_data and not measure.lower
    assert measure(session, nothing) == 1.0
    broken = find_measure(Recipe(eval=f"{path}:g"), model, session, nothing, nothing)
    assert broken is not None and np.isnan(broken(session, nothing, finite=False))
    with pytest.raises(DataError, match="wanted one finite number"):
        broken(session, nothing)


def test_labels_of_later_batches_are_checked(setting: Callable[..., Setting]) -> None:
    found = setting(LINE, "accuracy", X.argmax(1), x=X)
    bad = replace(found.data, labels=(*found.data.labels[:-1], np.zeros((4, 2), dtype=np.int64)))
    with pytest.raises(DataError, match="do not fit output"):
        found.measure()(found.session, bad)
