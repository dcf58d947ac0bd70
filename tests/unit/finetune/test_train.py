"""The loop: masks held, the learning rate's cycle, the best weights, resuming, repeating."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from onnxprune.errors import ModelError
from onnxprune.finetune.batches import Batches
from onnxprune.finetune.checkpoint import Checkpoint
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.train import (
    LOWEST,
    RATES,
    WARMUP,
    Settings,
    Trained,
    Trainer,
    cycle,
    learning_scales,
    lowest,
)
from onnxprune.finetune.view import TorchView
from onnxprune.model import Model
from onnxprune.outputs import FEATURES, OutputKind
from tests.unit.finetune.networks import parse

MASK = {"w": np.arange(48).reshape(8, 6) % 3 > 0}
LOSS = Loss({"y": OutputKind(FEATURES)})


def student() -> Model:
    w = np.where(MASK["w"], np.random.default_rng(5).normal(size=(8, 6)), 0).astype(np.float32)
    text = "g (float[N, 8] x) => (float[N, 6] y) { a = MatMul(x, w) y = Add(a, b) }"
    return parse(text, {"w": w, "b": np.zeros(6, np.float32)})


def batches(seed: int, count: int = 4, scale: float = 1.0) -> Batches:
    rng = np.random.default_rng(seed)
    target = np.random.default_rng(0).normal(size=(8, 6))
    x = [rng.normal(size=(16, 8)).astype(np.float32) for _ in range(count)]
    y = [{"y": (scale * (rows @ target) + 1).astype(np.float32)} for rows in x]
    return Batches(range(count), lambda n: {"x": x[n]}, y.__getitem__, size=8)


def trainer(view: TorchView, settings: Settings, **options: object) -> Trainer:
    return Trainer(view, LOSS, batches(1), batches(2, 1), MASK, settings, **options)  # type: ignore[arg-type]


def test_cycle_rises_then_falls() -> None:
    values = [cycle(p) for p in np.linspace(0, 1, 101)]
    top = int(np.argmax(values))
    assert top == round(100 * WARMUP)
    assert values[top] == pytest.approx(1)
    assert values[0] == values[-1] == pytest.approx(LOWEST)
    assert (np.diff(values[:top]) > 0).all()
    assert (np.diff(values[top:]) < 0).all()


def test_training_gets_near_the_best_masked_weights() -> None:
    view = TorchView(student())
    found = trainer(view, Settings(steps=400, lr=0.05)).run()
    w = view.weights["w"].detach().numpy()
    assert (w[~MASK["w"]] == 0).all()
    assert found.steps == 400
    x = np.random.default_rng(9).normal(size=(5000, 8))
    target = np.random.default_rng(0).normal(size=(8, 6))
    best = np.zeros((8, 6))  # least squares on the kept weights of each output
    for column in range(6):
        kept = MASK["w"][:, column]
        best[kept, column] = np.linalg.lstsq(x[:, kept], x @ target[:, column], rcond=None)[0]
    lowest = ((x @ (best - target)) ** 2).mean()
    assert ((x @ (w - target)) ** 2).mean() < 1.15 * lowest + 0.05
    assert found.after < 0.5 * found.before
    np.testing.assert_allclose(view.weights["b"].detach().numpy(), 1, atol=0.5)


def test_the_same_seed_gives_the_same_weights() -> None:
    results = []
    for seed in (0, 0, 1):
        view = TorchView(student())
        trainer(view, Settings(steps=30, seed=seed)).run()
        results.append(view.weights["w"].detach().numpy().tobytes())
    assert results[0] == results[1] != results[2]


def test_diverging_training_leaves_the_weights_as_they_were() -> None:
    view = TorchView(student())
    before = view.weights["w"].detach().clone()
    found = trainer(view, Settings(steps=200, lr=50.0)).run()
    assert found.best == 0
    assert found.steps < 200  # it stops by itself
    assert found.after == found.before
    assert torch.equal(view.weights["w"].detach(), before)


def test_a_loss_that_is_no_number_is_refused() -> None:
    view = TorchView(student())
    bad = batches(2, 1, scale=float("inf"))
    with pytest.raises(ModelError, match=r"the loss before training is (nan|inf)"):
        Trainer(view, LOSS, batches(1), bad, MASK, Settings(steps=3)).run()


def test_minutes_end_the_training() -> None:
    view = TorchView(student())
    found = trainer(view, Settings(steps=10**6, minutes=0.01)).run()
    assert 0.5 <= found.seconds < 20
    assert 0 < found.steps < 10**6


def test_steps_without_a_finite_gradient_are_counted() -> None:
    calls: list[int] = []

    def custom(student: dict, teacher: dict, feeds: dict) -> torch.Tensor:  # type: ignore[type-arg]
        calls.append(1)
        error = (student["y"] - teacher["y"]).square().mean()
        return error * float("nan") if torch.is_grad_enabled() and len(calls) % 3 == 0 else error

    view = TorchView(student())
    loss = Loss({"y": OutputKind(FEATURES)}, custom=custom)
    found = Trainer(view, loss, batches(1), batches(2, 1), MASK, Settings(steps=30, lr=0.01)).run()
    assert 5 <= found.skipped < 30
    assert found.after < found.before
    assert all(torch.isfinite(weight).all() for weight in view.weights.values())


class _Killed(Exception):  # noqa: N818
    pass


def test_a_killed_run_goes_on_to_the_same_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("onnxprune.finetune.checkpoint.EVERY", 0.0)
    settings = Settings(steps=40)
    whole = TorchView(student())
    wanted = trainer(whole, settings).run()

    def kill(step: int, found: Trained) -> None:
        if step == 23:
            raise _Killed

    view = TorchView(student())
    with pytest.raises(_Killed):
        trainer(view, settings, checkpoint=Checkpoint("k"), tell=kill).run()
    view, steps = TorchView(student()), []
    found = trainer(view, settings, checkpoint=Checkpoint("k"), tell=lambda step, _: steps.append(step)).run()
    assert steps[0] == 23  # step 22 was the last one saved
    assert found.curve == wanted.curve
    for name, weight in view.weights.items():
        assert torch.equal(weight, whole.weights[name])


def test_the_rate_is_the_best_of_some_trials() -> None:
    view = TorchView(student())
    found = trainer(view, Settings(steps=40)).run()
    assert found.lr == max(RATES)  # a small, well-behaved problem: the largest is the best
    again = TorchView(student())
    fixed = trainer(again, Settings(steps=40, lr=found.lr)).run()
    assert fixed.curve == found.curve  # the trials left no trace
    assert torch.equal(view.weights["w"], again.weights["w"])


def test_the_walk_over_the_rates() -> None:
    asked: list[float] = []

    def outcome(best: float, rate: float) -> float:
        asked.append(rate)
        return abs(np.log(rate / best))

    for best in RATES:
        asked.clear()
        assert lowest(RATES, lambda rate, best=best: outcome(best, rate)) == best  # type: ignore[misc]
        assert len(asked) <= 4
        assert len(set(asked)) == len(asked)


def test_learning_scales_follow_the_tensors() -> None:
    weights = {
        "big": torch.tensor([[0.0, 3.0], [3.0, 0.0]]),
        "small": torch.full((2, 2), 0.1),
        "bias": torch.zeros(2),
    }
    scales = learning_scales(weights, {})
    assert scales["big"] == pytest.approx(3)  # zeros do not count
    assert scales["small"] == pytest.approx(0.1)
    assert scales["bias"] == pytest.approx(3)  # as the typical matrix, to get away from zero


def test_learning_scales_of_large_tensors_are_finite() -> None:
    scales = learning_scales({"w": torch.full((2, 2), 3e30)}, {})
    assert scales["w"] == pytest.approx(3e30)
