"""Gradients of a model's own answers and of labels; the sums themselves are tested in test_gradients.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.calibration.data import from_iterable
from onnxprune.errors import DataError, ModelError
from onnxprune.finetune.slopes import slopes
from onnxprune.recipe import Recipe
from tests.unit.finetune.networks import images, parse, residual_net

W = np.array([[1.0, -2.0, 0.5], [3.0, 0.5, -1.0]], np.float32)
TEXT = "g (float[N, 2] x) => (float[N, 3] logits) { logits = MatMul(x, W) }"


def test_labels_by_hand() -> None:
    """Cross entropy of a linear classifier: the gradient is x (p - onehot)."""
    model = parse(TEXT, {"W": W})
    x = np.array([[1, 2], [-1, 0.5]], np.float32)
    data = from_iterable(model, [{"x": x, "label": np.array([0, 2])}], Recipe(labels="label", finetune=True))
    found = slopes(model, ["W"], data, 64, key="label")
    p = np.exp(x @ W) / np.exp(x @ W).sum(1, keepdims=True)
    g = x[:, :, None] * (p - np.eye(3)[[0, 2]])[:, None, :]
    assert found.samples == 2
    np.testing.assert_allclose(found.first["W"], g.sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.second["W"], (g**2).sum(0), rtol=1e-5)


def test_labels_of_some_classes_leave_the_others_cold() -> None:
    """What tells class 0 from class 1 matters for samples of these; own answers ask all three."""
    model = parse(TEXT, {"W": 6 * np.eye(2, 3, dtype=np.float32)})
    x = np.array([[1, 0], [0, 1]] * 8, np.float32)
    feeds: list[dict[str, Any]] = [{"x": x, "label": np.array([0, 1] * 8)}]
    wrong = [{"x": x, "label": np.array([1, 0] * 8)}]
    recipe = Recipe(labels="label", finetune=True)
    right, other = (
        slopes(model, ["W"], from_iterable(model, f, recipe), 64, key="label").second["W"].sum()
        for f in (feeds, wrong)
    )
    assert other > 100 * right  # answers that the model gives already ask for no change


def test_no_more_samples_than_asked_for() -> None:
    model = residual_net()
    data = from_iterable(model, images(20), Recipe())
    assert slopes(model, ["w1"], data, 8).samples == 8
    assert slopes(model, ["w1"], data, 64).samples == 20


def test_labels_that_fit_nothing() -> None:
    model = parse(TEXT, {"W": W})
    data = from_iterable(
        model,
        [{"x": np.ones((2, 2), np.float32), "label": np.array([7, 0])}],
        Recipe(labels="label", finetune=True),
    )
    with pytest.raises(DataError, match="class number 7"):
        slopes(model, ["W"], data, 64, key="label")


def test_weights_that_nothing_depends_on() -> None:
    text = """g (float[N, 2] x) => (float[N, 3] y, int64[N, 1] k) {
        y = MatMul(x, W) b = MatMul(x, V) k = ArgMax<axis = 1>(b) }"""
    model = parse(text, {"W": W, "V": W})
    with pytest.raises(ModelError, match="no output depends smoothly on weight 'V'"):
        slopes(model, ["W", "V"], from_iterable(model, np.ones((2, 2), np.float32), Recipe()), 4)
