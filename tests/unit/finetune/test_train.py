"""The loop: masks held, the learning rate's cycle, the best weights, resuming, repeating."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.finetune.batches import Batches
from onnxprune.finetune.checkpoint import Checkpoint
from onnxprune.finetune.judge import Losses
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.rates import USUAL
from onnxprune.finetune.train import EVALUATIONS, LOWEST_RATE, SLOWER, Trainer
from onnxprune.finetune.trained import Settings, Trained
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


def single(loss: float) -> Losses:
    return Losses(np.array([loss]), np.ones(1), loss)


def pieces(values: NDArray[np.float64]) -> Losses:
    return Losses(values, np.ones(len(values)), float(values.mean()))


def trainer(view: TorchView, settings: Settings, **options: object) -> Trainer:
    return Trainer(view, LOSS, batches(1), batches(2, 1), MASK, settings, **options)  # type: ignore[arg-type]


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


def test_a_rate_that_runs_away_gives_way_to_the_next_lower_one() -> None:
    view, notes = TorchView(student()), list[str]()
    found = trainer(view, Settings(steps=32, default=3e-3), note=notes.append)
    seen = iter([1.0, 0.9, 5.0, 0.8, float("nan")])
    found.judge.losses = lambda batches: single(next(seen, 0.5))  # type: ignore[method-assign]
    done = found.run()
    assert done.lr == pytest.approx(SLOWER**2 * 3e-3) and done.steps == 32 and done.best == 32
    assert [step for step, *_ in done.curve][:4] == [2, 4, 6, 8]  # the steps that were lost count
    assert notes == [
        f"the held-out loss ran away: going on with a rate of {rate}" for rate in (0.0009, 0.00027)
    ]
    assert found.passed == 8 and found._progress() == 1.0


def test_a_loss_that_runs_away_at_any_rate_ends_the_training() -> None:
    found = trainer(TorchView(student()), Settings(steps=100, default=3e-4))
    seen = iter([1.0])
    found.judge.losses = lambda batches: single(next(seen, 5.0))  # type: ignore[method-assign]
    done = found.run()
    assert done.best == 0 and done.steps < 40 and done.lr <= LOWEST_RATE


def test_the_last_weights_are_kept_unless_they_are_surely_worse() -> None:
    calm = np.linspace(1, 2, 16)
    one_worse, all_worse = calm.copy(), calm + 0.1
    one_worse[5] += 3
    for last, best in ((one_worse, 8), (all_worse, 4)):
        found = trainer(TorchView(student()), Settings(steps=8, lr=1e-6))
        seen = iter([calm * 1.5, *[calm * 1.2] * 3, calm, *[calm * 1.2] * 3, last])
        found.judge.losses = lambda batches, seen=seen: pieces(next(seen))  # type: ignore[method-assign, misc]
        assert found.run().best == best


def test_weights_that_are_likely_worse_are_not_kept() -> None:
    calm, chance = np.linspace(1, 2, 16), np.tile([1, -1], 8) * 0.5
    ends = ((calm + 0.01 + chance, True), (calm + 0.2 + chance, False), (calm - 0.01, True))
    for last, helped in ends:  # worse by chance, by 1.5 standard errors, better
        view = TorchView(student())
        before = view.weights["w"].detach().clone()
        found = trainer(view, Settings(steps=8, lr=1e-3))
        seen = iter([calm, *[calm * 1.2] * 7, last])
        found.judge.losses = lambda batches, seen=seen: pieces(next(seen))  # type: ignore[method-assign, misc]
        done = found.run()
        assert done.best == (8 if helped else 0)
        assert done.after == (pytest.approx(last.mean()) if helped else done.before)
        assert torch.equal(view.weights["w"].detach(), before) is not helped


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
    whole = TorchView(steep())
    wanted = trainer(whole, settings).run()

    def kill(step: int, found: Trained) -> None:
        if step == 23:
            raise _Killed

    view = TorchView(steep())
    with pytest.raises(_Killed):
        trainer(view, settings, checkpoint=Checkpoint("k"), tell=kill).run()
    view, steps = TorchView(steep()), []
    found = trainer(view, settings, checkpoint=Checkpoint("k"), tell=lambda step, _: steps.append(step)).run()
    assert steps[0] == 23  # step 22 was the last one saved
    assert found.curve == wanted.curve
    for name, weight in view.weights.items():
        assert torch.equal(weight, whole.weights[name])


def test_the_rate_is_the_usual_one_unless_it_was_given() -> None:
    assert trainer(TorchView(student()), Settings(steps=8)).run().lr == USUAL
    assert trainer(TorchView(student()), Settings(steps=8, lr=0.02)).run().lr == 0.02


def steep() -> Model:
    """A network one of whose weights is multiplied by a hundred."""
    text = """g (float[N, 8] x) => (float[N, 6] y) {
        a = MatMul(x, w) b = Mul(a, hundred) c = Add(b, one) d = Add(c, two) y = Add(d, three)
    }"""
    weights = {"w": np.where(MASK["w"], 1, 0), "hundred": np.full(1, 100.0)}
    weights |= {name: np.ones(6) for name in ("one", "two", "three")}
    return parse(text, {name: value.astype(np.float32) for name, value in weights.items()})


@pytest.mark.parametrize("lr", [None, 1e-4])
def test_a_tensor_whose_steps_do_too_much_is_slowed_down(lr: float | None) -> None:
    notes: list[str] = []
    found = trainer(TorchView(steep()), Settings(steps=40, lr=lr), note=notes.append)
    before = dict(found.scales)
    found.run()
    assert found.scales["w"] < 0.2 * before["w"]
    assert [found.scales[name] for name in ("one", "two", "three")] == [before["one"]] * 3
    assert notes[0] == "smaller steps for 1 of 4 weights: theirs change the outputs most"


def test_measuring_leaves_no_trace_but_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [TorchView(student()) for _ in range(2)]
    found = trainer(views[0], Settings(steps=20)).run()
    monkeypatch.setattr(Trainer, "_calm", lambda self: None)
    assert trainer(views[1], Settings(steps=20)).run().curve == found.curve
    assert torch.equal(views[0].weights["w"], views[1].weights["w"])


def test_gradients_are_zero_where_weights_are_held() -> None:
    found = trainer(TorchView(student()), Settings(steps=1))
    found._gradients(found._next())
    gradient = found.weights["w"].grad
    assert gradient is not None and not gradient[torch.from_numpy(~MASK["w"])].any()
    assert gradient[torch.from_numpy(MASK["w"])].all()


def test_the_minutes_hold_the_measuring_too() -> None:
    view, notes = TorchView(student()), list[str]()
    slow = trainer(view, Settings(steps=300, minutes=0.02), note=notes.append)
    quick = slow._next

    def delayed() -> object:
        time.sleep(0.05)
        return quick()

    slow._next = delayed  # type: ignore[method-assign, assignment]
    found = slow.run()
    assert 0 < slow.prelude < 0.35 * 1.2  # all batches of it would take half of the time
    assert re.fullmatch(r"little time: what steps do was measured on [1-5] of 12 batches", notes[0])
    assert 8 < found.steps < 24
    assert found.seconds >= 1.2
    steps = [step for step, *_ in found.curve]
    assert EVALUATIONS // 2 < len(steps) <= EVALUATIONS
    assert steps[-1] == found.steps


def test_a_slow_evaluation_takes_nothing_from_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, notes = [0.0], list[str]()
    monkeypatch.setattr("onnxprune.finetune.train.now", lambda: seconds[0])
    found = trainer(TorchView(steep()), Settings(steps=300, minutes=1), note=notes.append)
    losses, following = found.judge.losses, found._next

    def slow(batches: Batches) -> Losses:
        seconds[0] += 10  # a sixth of the minutes
        return losses(batches)

    def quick() -> object:
        seconds[0] += 0.4
        return following()

    found.judge.losses = slow  # type: ignore[method-assign]
    found._next = quick  # type: ignore[method-assign, assignment]
    found.run()
    assert notes == ["smaller steps for 1 of 4 weights: theirs change the outputs most"]


def test_minutes_that_are_over_at_once_still_give_a_step() -> None:
    view = TorchView(student())
    assert trainer(view, Settings(minutes=1e-6)).run().steps == 1


def test_weights_that_do_not_matter_are_refused() -> None:
    text = "g (float[N, 8] x) => (float[N, 6] y) { a = MatMul(x, w) b = Shape(a) y = Expand(c, b) }"
    view = TorchView(parse(text, {"w": np.ones((8, 6), np.float32), "c": np.ones(1, np.float32)}))
    assert len(view.weights) == 2
    with pytest.raises(ModelError, match="the loss has no gradient: none of 0 weights"):
        Trainer(view, LOSS, batches(1), None, {}, Settings(steps=3)).run()


TWO = """
import sys
import numpy as np
from onnxprune.finetune.batches import Batches
from onnxprune.finetune.judge import Losses
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.train import Trainer
from onnxprune.finetune.trained import Settings
from onnxprune.finetune.view import TorchView
from onnxprune.finetune.world import World
from onnxprune.outputs import FEATURES, OutputKind
from tests.unit.finetune.networks import parse

with World() as world:
    own, shared = np.random.default_rng(world.rank), np.random.default_rng(9)
    mask = own.random((8, 6)) > 0.5
    w = np.where(mask, own.normal(size=(8, 6)), 0).astype(np.float32)
    text = "g (float[N, 8] x, bool t) => (float[N, 6] y) {"
    text += "a = MatMul(x, w) y = If(t) <then_branch = one() => (float[N, 6] p) { p = MatMul(x, v) }, "
    text += "else_branch = two() => (float[N, 6] q) { q = Identity(a) }> }"
    v = shared.normal(size=(8, 6)).astype(np.float32)
    view = TorchView(parse(text, {"w": w, "v": v}))
    x = [shared.normal(size=(4, 8)).astype(np.float32) for _ in range(4)]
    y = shared.normal(size=(4, 6)).astype(np.float32)
    # The processes read other weights: only one of them has a gradient for w, the other one for v
    feeds = lambda n: {"x": x[n], "t": np.array(bool(world.rank))}
    batches = Batches(range(4), feeds, lambda n: {"y": y})
    loss = Loss({"y": OutputKind(FEATURES)})
    trainer = Trainer(view, loss, batches, None, {"w": mask}, Settings(steps=12, minutes=0.005), world=world)
    found = trainer.run()
    weight = view.weights["w"].detach().numpy()
    told = (found.steps, found.lr, found.best, round(float(np.abs(weight).sum()), 4))
    sys.stdout.write(f"{world.rank} {told} {int((weight == 0).sum())} {int((~mask).sum())}\\n")
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights() -> None:
    """Each pruned for itself: the masks and the weights of the first one count, and so do its decisions."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, "--no-python", sys.executable, "-c", TWO], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = (line.split(maxsplit=1)[1] for line in sorted(done.stdout.splitlines()))
    assert first.rsplit(maxsplit=1)[0] == second.rsplit(maxsplit=1)[0]
    *_, zeros, wanted = first.split()
    assert zeros == wanted
