"""Gradient statistics against cases worked by hand and against finite sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.errors import DataError
from onnxprune.finetune.gradients import collect, own_answers
from onnxprune.finetune.view import TorchView
from onnxprune.outputs import FEATURES, LOGITS, OutputKind
from tests.unit.finetune.networks import images, parse, residual_net


def linear() -> tuple[TorchView, np.ndarray]:
    W = np.array([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]], np.float32)
    model = parse("g (float[N, 3] x) => (float[N, 2] y) { y = MatMul(x, W) }", {"W": W})
    return TorchView(model), W


def test_a_linear_model_by_hand() -> None:
    view, W = linear()
    x = np.array([[1, 2, 3], [-1, 0, 2]], np.float32)
    weights = np.array([2.0, 5.0])  # loss = 2 y0 + 5 y1, so dL/dW = x (2, 5)
    loss = lambda outputs, feeds: (outputs["y"] * torch.tensor([2.0, 5.0])).sum()  # noqa: E731
    found = collect(view, [{"x": x}], loss, ["W"], ["y"])
    each = x[:, :, None] * weights
    assert found.samples == 2
    np.testing.assert_allclose(found.first["W"], each.sum(0))
    np.testing.assert_allclose(found.second["W"], (each**2).sum(0))
    np.testing.assert_allclose(found.taylor["W"], np.abs(each * W).sum(0))
    np.testing.assert_allclose(found.activations["y"], 2 * weights**2)


def test_shards_add() -> None:
    view = TorchView(residual_net())
    x = images(6)
    loss = lambda outputs, feeds: outputs["logits"].square().sum()  # noqa: E731
    whole = collect(view, [{"x": x}], loss, ["w1", "wh"])
    parts = collect(view, [{"x": x[:2]}], loss, ["w1", "wh"]) + collect(
        view, [{"x": x[2:]}], loss, ["w1", "wh"]
    )
    assert parts.samples == whole.samples == 6
    for name in ("w1", "wh"):
        np.testing.assert_allclose(parts.second[name], whole.second[name], rtol=1e-6)
        assert (whole.second[name] > 0).any()


def test_own_answers_estimate_the_fisher_of_a_classifier() -> None:
    view, W = linear()
    x = np.array([[0.5, -0.2, 0.1]], np.float32)
    repeated = np.repeat(x, 4000, axis=0)
    found = collect(view, [{"x": repeated}], own_answers({"y": OutputKind(LOGITS, -1)}), ["W"])
    scores = (x @ W)[0]
    p = np.exp(scores) / np.exp(scores).sum()
    wanted = (x[0] ** 2)[:, None] * (p * (1 - p))  # E[(onehot - p)^2] = p (1 - p)
    np.testing.assert_allclose(found.second["W"] / found.samples, wanted, rtol=0.1)
    assert np.abs(found.first["W"] / found.samples).max() < 0.1 * np.sqrt(wanted).max()  # no bias


def test_own_answers_of_features_give_the_squared_jacobian() -> None:
    view, _ = linear()
    x = np.array([[1.0, 2.0, 0.0]], np.float32)
    loss = own_answers({"y": OutputKind(FEATURES)})
    found = collect(view, [{"x": np.repeat(x, 4000, axis=0)}], loss, ["W"])
    wanted = np.array([[1, 1], [4, 4], [0, 0]])
    np.testing.assert_allclose(found.second["W"] / found.samples, wanted, atol=0.4)


def test_rows_must_agree() -> None:
    model = parse("g (float[N, 3] x, float[M] z) => (float[N, 3] y) { y = Add(x, z) }", {})
    with pytest.raises(DataError, match="one row per sample"):
        collect(TorchView(model), [{"x": np.ones((2, 3), np.float32), "z": np.ones(3, np.float32)}],
                own_answers({"y": OutputKind(FEATURES)}), [])  # fmt: skip
