"""The stage of the pipeline: the recipe becomes options, the result becomes a report."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import runtime
from onnxprune.calibration.data import from_iterable
from onnxprune.errors import DataError, ResourceError, UsageError
from onnxprune.finetune import distill
from onnxprune.finetune.stage import (
    NO_LIMIT,
    check_labels,
    follower,
    limits,
    merged,
    require_torch,
    share_of,
    tune,
)
from onnxprune.finetune.task import Task
from onnxprune.layers import find_layers
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.report.report import plain
from tests.unit.finetune.networks import calibration, images, magnitude_pruned, parse, residual_net

NAMES = ("w1", "w2", "w3", "w4")
LOSS = """
def loss(student, teacher, feeds):
    assert feeds["x"].shape[1:] == (3, 8, 8)
    return (student["logits"] - teacher["logits"]).abs().mean()
"""


def run(recipe: Recipe) -> dict:  # type: ignore[type-arg]
    dense = residual_net()
    pruned = magnitude_pruned(dense, NAMES)
    layers, _ = find_layers(pruned, min_size=1)
    data, held = calibration(dense, 64), calibration(dense, 16)
    result, found = tune(dense, pruned, layers, data, held, recipe, NullProgress())
    assert not np.array_equal(result.array("w1"), pruned.array("w1"))
    return found


def test_what_the_report_says() -> None:
    found = run(Recipe(finetune=True, steps=16, lr=0.01, cache=False))
    assert found["steps"] == 16
    assert found["lr"] == 0.01
    assert found["after"] < found["before"]
    assert found["features"] == ("h0", "h1", "f")
    assert found["start"] == ""
    assert len(found["curve"]) == 16
    json.dumps(plain(found))


def test_a_loss_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "task.py"
    path.write_text(LOSS)
    found = run(Recipe(finetune=True, steps=8, lr=0.01, loss=f"{path}:loss", cache=False))
    assert found["after"] < found["before"]
    with pytest.raises(UsageError, match="--loss"):
        run(Recipe(finetune=True, loss=f"{path}:other", cache=False))


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    require_torch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="--finetune needs torch"):
        require_torch()


@pytest.mark.parametrize(("rank", "size", "wanted"), [("0", "2", False), ("1", "2", True), ("1", "1", False)])
def test_only_the_first_process_writes(
    monkeypatch: pytest.MonkeyPatch, rank: str, size: str, wanted: bool
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert follower() is wanted


@pytest.mark.parametrize("scope", ["model", "block"])
def test_a_model_with_a_fixed_batch(scope: str) -> None:
    text = """g (float[1, 3, 8, 8] x) => (float[1, 10] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) d = Conv<pads = [1, 1, 1, 1]>(r, v) q = Relu(d)
        p = GlobalAveragePool(q) f = Reshape(p, shape) y = MatMul(f, h) }"""
    rng = np.random.default_rng(0)
    shapes = {"w": (16, 3, 3, 3), "v": (16, 16, 3, 3), "h": (16, 10)}
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    dense = parse(text, weights | {"shape": np.array([1, 16])})
    pruned = magnitude_pruned(dense, ("v",))
    layers, _ = find_layers(pruned, min_size=1)
    feeds = [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(20)]
    data = from_iterable(dense, feeds, Recipe())
    recipe = Recipe(finetune=True, steps=20, lr=0.01, cache=False, scope=scope)
    _, found = tune(dense, pruned, layers, data, data, recipe, NullProgress())
    assert found["after"] < found["before"]


def test_samples_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(*args: object) -> tuple[object, distill.Tuned]:
        seen.append(args[5].batch)  # type: ignore[attr-defined]
        raise UsageError("enough")

    monkeypatch.setattr(distill, "finetune", spy)
    for given in (None, 4, 32):
        with pytest.raises(UsageError, match="enough"):
            run(Recipe(finetune=True, batch_size=given))
    assert seen == [16, 4, 32]


def test_rounds_share_steps_and_minutes() -> None:
    recipe = Recipe(finetune=True, steps=12, minutes=2.0, schedule="cubic:4")
    part = share_of(recipe, recipe.rounds)  # 3 steps are fewer than 4 rounds: a part has no rounds
    assert (part.steps, part.minutes, part.rounds) == (3, 0.5, 1)
    assert share_of(Recipe(finetune=True, steps=7), 1) == Recipe(finetune=True, steps=7)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, (3000, 10.0)),
        ({"steps": 50}, (50, None)),
        ({"minutes": 2.0}, (NO_LIMIT, 2.0)),
        ({"steps": 50, "minutes": 2.0}, (50, 2.0)),
    ],
)
def test_training_ends_at_what_was_asked_for_or_in_good_time(
    given: dict[str, Any], wanted: tuple[int, float | None]
) -> None:
    assert limits(Recipe(finetune=True, **given)) == wanted


def test_the_report_of_rounds_holds_all_of_them() -> None:
    first = {"steps": 5, "skipped": 1, "seconds": 2.0, "best": 0, "before": 0.2, "after": 0.1, "curve": []}
    first["curve"] = [(4, 0.5, 0.3), (5, 0.4, 0.2)]
    second = first | {"steps": 6, "skipped": 0, "best": 3, "after": 0.05, "curve": [(3, 0.1, 0.2)]}
    found = merged([first, second])
    assert (found["steps"], found["skipped"], found["seconds"], found["best"]) == (11, 1, 4.0, 8)
    assert (found["before"], found["after"]) == (0.2, 0.05)  # of the last one
    assert found["curve"] == [(4, 0.5, 0.3), (5, 0.4, 0.2), (8, 0.1, 0.2)]
    assert merged([first])["best"] == merged([second, first])["best"] == 0
    assert len(first["curve"]) == 2


class TestLabels:
    """Looked at before the long work."""

    def look(self, label: np.ndarray, **options: Any) -> Task | None:
        dense = residual_net()
        recipe = Recipe(finetune=True, labels="label", **options)
        data = from_iterable(dense, {"x": images(len(label)), "label": label}, recipe)
        train, held = data.split(0.25, 0)
        return check_labels(dense, runtime.session(dense.to_bytes()), train, held, recipe)

    def test_labels_that_fit(self) -> None:
        classes = self.look(np.arange(20) % 10)
        assert classes is not None and classes.output == "logits" and classes.kind.classes
        values = self.look(np.arange(200).reshape(20, 10).astype(np.float32))
        assert values is not None and values.output == "logits" and not values.kind.classes
        assert values.scale > 1000

    def test_labels_that_do_not(self) -> None:
        with pytest.raises(DataError, match="class number 10, but output 'logits'"):
            self.look(np.arange(20) % 11)
        with pytest.raises(DataError, match=r"float32\[15,3\] in the first batch fits no output"):
            self.look(np.zeros((20, 3), np.float32))

    def test_labels_that_do_not_fit_a_later_batch(self) -> None:
        text = "g (float[N, T, 8] x) => (float[N, T, 4] y) { y = MatMul(x, w) }"
        dense = parse(text, {"w": np.ones((8, 4), np.float32)})
        feeds = [
            {"x": np.ones((2, width, 8), np.float32), "label": np.zeros((2, 5), int)} for width in (5, 5, 7)
        ]
        recipe = Recipe(finetune=True, labels="label")
        data = from_iterable(dense, feeds, recipe)
        session = runtime.session(dense.to_bytes())
        with pytest.raises(DataError, match=r"labels of shape \[2, 5\] do not fit output 'y', \[2, 7, 4\]"):
            check_labels(dense, session, data, data, recipe)
        fitting = from_iterable(dense, feeds[:2], recipe)
        check_labels(dense, session, fitting, fitting, recipe)

    def test_a_function_may_want_any(self, tmp_path: Path) -> None:
        (tmp_path / "task.py").write_text(LOSS)
        fits_nothing = np.zeros((20, 3), np.float32)
        assert self.look(fits_nothing, loss=f"{tmp_path}/task.py:loss") is None
        with pytest.raises(DataError, match="fits no output"):
            self.look(fits_nothing)

    def test_images_move_and_maps_do_not(self) -> None:
        with pytest.raises(UsageError, match="--augment shift moves what the image shows"):
            self.look(np.zeros((20, 8, 8), np.float32), augment=("shift",))

    def test_none(self) -> None:
        dense = residual_net()
        data = calibration(dense, 16)
        assert check_labels(dense, None, data, data, Recipe(finetune=True)) is None
