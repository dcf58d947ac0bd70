"""The loss of batches: the mean over rows, and a gradient or a clear refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.errors import ModelError
from onnxprune.finetune.batches import Batches
from onnxprune.finetune.judge import Judge, quick_form
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.view import TorchView
from onnxprune.finetune.world import World
from onnxprune.outputs import FEATURES, OutputKind
from tests.unit.finetune.networks import parse

TEXT = "g (float t, float[N, 8] x) => (float[N, 6] y) { a = MatMul(x, w) y = Mul(a, t) }"
W = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def absolute(student: dict, teacher: dict, feeds: dict) -> torch.Tensor:  # type: ignore[type-arg]
    return (student["y"] - teacher["y"]).abs().mean()


LOSS = Loss({"y": OutputKind(FEATURES)}, custom=absolute)


def batches(*rows: int) -> Batches:
    """The first input is a number: batches of other sizes are told by the second one."""
    feeds = [{"t": np.float32(1).reshape(()), "x": np.ones((n, 8), np.float32)} for n in rows]
    targets = [{"y": np.full((n, 6), n, np.float32) + W.sum(0)} for n in rows]  # n away from the student
    return Batches(range(len(rows)), feeds.__getitem__, targets.__getitem__)


def test_the_mean_is_over_rows() -> None:
    judge = Judge(TorchView(parse(TEXT, {"w": W})), LOSS, World())
    assert judge.mean(batches(3)) == pytest.approx(3, rel=1e-5)
    assert judge.mean(batches(1, 3)) == pytest.approx((1 * 1 + 3 * 3) / 4, rel=1e-5)


def test_a_batch_has_a_gradient() -> None:
    view = TorchView(parse(TEXT, {"w": W}))
    data = batches(2)
    torch.autograd.backward(Judge(view, LOSS, World())(*data.get(next(data.in_order()))))
    grad = view.weights["w"].grad
    assert grad is not None and grad.any()


def test_without_trained_weights_it_is_refused() -> None:
    view, data = TorchView(parse(TEXT, {"w": W}), trainable=()), batches(2)
    judge = Judge(view, Loss({"y": OutputKind(FEATURES)}), World())
    with pytest.raises(ModelError, match="none of 0 weights to train"):
        judge(*data.get(next(data.in_order())))


def test_images_have_their_channels_last() -> None:
    assert quick_form(torch.ones(2, 3, 4, 5)).is_contiguous(memory_format=torch.channels_last)
    assert quick_form(torch.ones(2, 3)).is_contiguous()
