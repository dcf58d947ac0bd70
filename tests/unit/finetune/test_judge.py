"""The loss of batches: the mean over rows, and a gradient or a clear refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.finetune.batches import Batches
from onnxprune.finetune.judge import FACTORS, LIKELY, NOISE, PIECES, SURE, Judge, Losses, quick_form
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.view import TorchView
from onnxprune.finetune.world import World
from onnxprune.outputs import FEATURES, LOGITS, OutputKind
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
    assert judge.losses(batches(3)).mean == pytest.approx(3, rel=1e-5)
    assert judge.losses(batches(1, 3)).mean == pytest.approx((1 * 1 + 3 * 3) / 4, rel=1e-5)


def test_values_inside_are_learnt_from_but_not_judged() -> None:
    text = "g (float[N, 8] x) => (float[N, 6] y) { a = MatMul(x, w) y = Mul(a, t) }"
    view = TorchView(parse(text, {"w": W, "t": np.ones(6, np.float32)}), outputs=["y", "a"])
    x = np.ones((4, 8), np.float32)
    wanted = {"y": x @ W, "a": x @ W + np.arange(4, dtype=np.float32)[:, None]}
    data = Batches(range(1), lambda n: {"x": x}, lambda n: wanted)
    judge = Judge(view, Loss({"y": OutputKind(FEATURES)}, features=("a",)), World())
    assert judge.losses(data).mean == pytest.approx(0, abs=1e-9)
    assert float(judge(*data.get([(0, row) for row in range(4)])).detach()) > 0.1


def test_samples_are_judged_in_pieces_of_few_rows() -> None:
    text = "g (float[N, 8] x) => (float[N, 6] y) { y = MatMul(x, w) }"
    x = np.repeat(np.arange(40, dtype=np.float32)[:, None], 8, 1)
    data = Batches(range(1), lambda n: {"x": x}, lambda n: {"y": np.zeros((40, 6), np.float32)})
    found = Judge(TorchView(parse(text, {"w": np.full((8, 6), 0.125, np.float32)})), LOSS, World()).losses(
        data
    )
    assert len(found.values) >= PIECES and found.rows.sum() == 40
    assert found.mean == pytest.approx(np.arange(40).mean(), rel=1e-5)
    assert found.values[0] < 1 and found.values[-1] > 38


@pytest.mark.parametrize("factor", FACTORS)
def test_what_is_only_less_sure_than_the_teacher_is_no_worse(factor: float) -> None:
    """A student whose logits are the teacher's, all smaller or larger, makes the same choices."""
    x = np.random.default_rng(1).normal(size=(32, 8)).astype(np.float32)
    kind = OutputKind(LOGITS, 1)
    view = TorchView(parse("g (float[N, 8] x) => (float[N, 6] y) { y = MatMul(x, w) }", {"w": W}))
    data = Batches(range(1), lambda n: {"x": x}, lambda n: {"y": factor * (x @ W)})
    assert Judge(view, Loss({"y": kind}), World()).losses(data).mean < 1e-5
    other = Judge(view, Loss({"y": kind}, form="mse"), World()).losses(data).mean  # there it counts
    assert (other > 0.05) == (factor != 1)
    shuffled = Batches(range(1), lambda n: {"x": x}, lambda n: {"y": factor * (x @ W)[:, ::-1]})
    assert Judge(view, Loss({"y": kind}), World()).losses(shuffled).mean > 0.1


def losses(values: NDArray[np.float64], rows: NDArray[np.float64] | None = None) -> Losses:
    rows = np.ones(len(values)) if rows is None else rows
    return Losses(values, rows, float(np.average(values, weights=rows)))


def test_one_piece_that_got_worse_is_no_proof() -> None:
    before = np.random.default_rng(0).random(16)
    after = before * 0.99
    after[3] += 1.0
    assert losses(after).mean > losses(before).mean
    assert not losses(after).worse_than(losses(before))
    assert losses(before + 0.01).worse_than(losses(before))  # all of them are worse, by little
    assert not losses(before - 0.01).worse_than(losses(before))
    nothing = losses(after * np.nan)
    assert nothing.worse_than(losses(before))
    assert not losses(before).worse_than(nothing) and not nothing.worse_than(nothing)


def test_pieces_count_by_their_rows() -> None:
    before, rows = np.ones(8), np.array([100, 100, 100, 100, 1, 1, 1, 1.0])
    after = np.array([1.1, 1.1, 1.1, 1.1, 0, 0, 0, 0])
    assert losses(after, rows).worse_than(losses(before, rows))
    assert not losses(after).worse_than(losses(before))


def test_the_standard_error_is_the_one_of_a_paired_test() -> None:
    random = np.random.default_rng(1)
    before, step = random.random(12), random.normal(size=12)
    t = step.mean() / (step.std(ddof=1) / np.sqrt(12))
    shift = (SURE - t) * step.std(ddof=1) / np.sqrt(12)  # now it is SURE standard errors
    assert losses(before + step + shift + 1e-9).worse_than(losses(before))
    assert not losses(before + step + shift - 1e-9).worse_than(losses(before))


def test_fewer_standard_errors_are_enough_for_what_is_only_likely() -> None:
    random = np.random.default_rng(1)
    before, step = random.random(12), random.normal(size=12)
    after = before + step - step.mean() + 1.5 * step.std(ddof=1) / np.sqrt(12)
    assert losses(after).worse_than(losses(before), LIKELY) and not losses(after).worse_than(losses(before))
    assert losses(np.array([1 + 0.6 * NOISE])).worse_than(losses(np.ones(1)), LIKELY)


def test_a_single_piece_may_be_worse_by_noise() -> None:
    one = losses(np.ones(1))
    assert not losses(np.array([1 + 0.9 * NOISE])).worse_than(one)
    assert losses(np.array([1 + 1.1 * NOISE])).worse_than(one)


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
