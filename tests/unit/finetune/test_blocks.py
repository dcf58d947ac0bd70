"""Blocks are trained one after the other, each on what the trained ones before it give."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.data import from_iterable
from onnxprune.calibration.streams import Streams
from onnxprune.errors import ModelError
from onnxprune.finetune.batches import Taps
from onnxprune.finetune.blocks import find_blocks, tune_blocks
from onnxprune.finetune.trained import Settings
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from tests.unit.finetune.conftest import WorkClock
from tests.unit.finetune.networks import calibration, images, magnitude_pruned, parse, residual_net

NAMES = ("w1", "w2", "w3", "w4")
TRAINABLE = {*NAMES, "b1", "b2", "b3", "b4", "ws", "bs", "wh", "bh"}


def errors(model: Model, dense: Model, names: list[str]) -> dict[str, float]:
    x = images(64, seed=99)
    found, wanted = (Taps(m, names, {"x": x})({"x": x}) for m in (model, dense))
    return {n: float(((found[n] - wanted[n]) ** 2).mean() / wanted[n].var()) for n in names}


def test_every_block_gets_nearer_to_the_dense_one() -> None:
    dense = residual_net()
    student = magnitude_pruned(dense, NAMES)
    before = errors(student, dense, ["h1", "f", "logits"])
    zeros = {name: student.array(name) == 0 for name in NAMES}
    layers, _ = find_layers(student, min_size=1)
    steps: list[int] = []
    blocks, shared = find_blocks(dense, student, layers, TRAINABLE)
    assert [(block.before, block.ends) for block in blocks] == [
        ("", ("h0",)), ("h0", ("h1",)), ("h1", ("f",)), ("f", ("logits",))
    ]  # fmt: skip
    assert blocks[-1].weights == {"wh", "bh"}
    assert not shared
    found = tune_blocks(
        dense, student, blocks, calibration(dense, 96), calibration(dense, 32), Settings(steps=40, lr=0.01),
        tell=lambda step, _: steps.append(step),
    )  # fmt: skip
    # The stem is not pruned: its block has nothing to learn, and ends when the first steps make it worse.
    (stem, _), *others = found
    assert stem.best == 0
    assert stem.steps < 40
    assert all(trained.steps == 40 and trained.best > 0 for trained, _ in others)
    assert len(steps) == 120 + stem.steps - 1
    after = errors(student, dense, ["h1", "f", "logits"])
    assert all(after[name] < 0.6 * before[name] for name in before)
    assert all(np.array_equal(student.array(name) == 0, zeros[name]) for name in NAMES)
    assert not np.array_equal(student.array("wh"), dense.array("wh"))  # behind the last cut


def test_only_what_may_be_trained_changes() -> None:
    dense = residual_net()
    student = magnitude_pruned(dense, NAMES)
    layers, _ = find_layers(student, min_size=1)
    blocks, _ = find_blocks(dense, student, layers, {"w3"}, "h1")
    assert [(block.before, block.ends, block.weights) for block in blocks] == [("h1", ("f",), {"w3"})]
    data = calibration(dense, 32)
    (_, names), *_ = tune_blocks(dense, student, blocks, data, None, Settings(steps=5, lr=0.01))
    assert names == ("w3",)
    changed = {n for n in dense.index.tensors if not np.array_equal(student.array(n), dense.array(n))}
    assert changed == set(NAMES)
    plain = magnitude_pruned(dense, NAMES)
    assert not np.array_equal(student.array("w3"), plain.array("w3"))
    assert np.array_equal(student.array("w4"), plain.array("w4"))


def chain(*names: str) -> Model:
    """Five matrices with a residual connection around each: ``names`` are those of the matrices."""
    nodes = [
        f"a{i} = MatMul(r{i}, {name}) t{i} = Tanh(a{i}) r{i + 1} = Add(t{i}, r{i})"
        for i, name in enumerate(names)
    ]
    text = f"g (float[N, 16] x) => (float[N, 16] y, int64[N, 1] c) {{ r0 = Identity(x) {' '.join(nodes)} "
    text += f"y = Identity(r{len(names)}) c = ArgMax<axis = 1>(y) }}"
    rng = np.random.default_rng(0)
    return parse(text, {n: rng.normal(0, 0.3, (16, 16)).astype(np.float32) for n in sorted(set(names))})


def test_weights_of_several_blocks_stay_as_they_are() -> None:
    dense = chain("w", "v", "w", "u")
    layers, _ = find_layers(dense, min_size=1)
    blocks, shared = find_blocks(dense, dense, layers, {"w", "v", "u"})
    assert shared == {"w"}
    assert [(block.ends, block.weights) for block in blocks] == [(("r2",), {"v"}), (("y",), {"u"})]


def test_without_weights_of_their_own_there_are_no_blocks() -> None:
    dense = chain("w", "w", "w")
    layers, _ = find_layers(dense, min_size=1)
    with pytest.raises(ModelError, match="of 3 blocks, all of 1 weights are used in several") as caught:
        find_blocks(dense, dense, layers, {"w"})
    assert "--scope model" in caught.value.hint
    with pytest.raises(ModelError, match="no weight can be trained"):
        find_blocks(dense, dense, layers, set())


def test_minutes_are_shared_by_blocks_that_train(work_clock: WorkClock) -> None:
    dense = chain("w", "w", "v", "u")
    student = magnitude_pruned(dense, ("v", "u"))
    layers, _ = find_layers(student, min_size=1)
    blocks, _ = find_blocks(dense, student, layers, {"w", "v", "u"})
    feeds = [{"x": np.random.default_rng(i).normal(size=(8, 16)).astype(np.float32)} for i in range(4)]
    data = from_iterable(dense, feeds, Recipe(batch_size=8))
    work_clock.counts(Streams, "advance", 4.0)
    found = tune_blocks(dense, student, blocks, data, None, Settings(10**9, 2.0, lr=0.001))
    assert 120 - 3 <= work_clock.value <= 120 + 3
    first, second = (trained.seconds for trained, _ in found)
    # 4 seconds to make ready for the first, 8 for the second, which has the half that is left
    assert 54 < first <= 59 and 45 < second <= 53
