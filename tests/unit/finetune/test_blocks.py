"""Blocks are trained one after the other, each on what the trained ones before it give."""

from __future__ import annotations

import numpy as np

from onnxprune.finetune.batches import Taps
from onnxprune.finetune.blocks import tune_blocks
from onnxprune.finetune.train import Settings
from onnxprune.layers import find_layers
from onnxprune.model import Model
from tests.unit.finetune.networks import calibration, images, magnitude_pruned, residual_net

NAMES = ("w1", "w2", "w3", "w4")
TRAINABLE = {*NAMES, "b1", "b2", "b3", "b4", "ws", "bs", "wh", "bh"}


def errors(model: Model, dense: Model, names: list[str]) -> dict[str, float]:
    x = images(64, seed=99)
    found, wanted = (Taps(m, names, {"x": x})({"x": x}) for m in (model, dense))
    return {n: float(((found[n] - wanted[n]) ** 2).mean() / wanted[n].var()) for n in names}


def test_every_block_gets_nearer_to_the_dense_one() -> None:
    dense = residual_net()
    student = magnitude_pruned(dense, NAMES)
    before = errors(student, dense, ["h1", "f"])
    zeros = {name: student.array(name) == 0 for name in NAMES}
    layers, _ = find_layers(student, min_size=1)
    steps: list[int] = []
    found = tune_blocks(
        dense, student, layers, calibration(dense, 96), calibration(dense, 32), TRAINABLE,
        Settings(steps=40, lr=0.01), tell=lambda step, _: steps.append(step),
    )  # fmt: skip
    # The stem is not pruned: its block has nothing to learn, and ends when the first steps make it worse.
    assert [name for name, _ in found] == ["h0", "h1", "f"]
    (_, stem), *others = found
    assert stem.best == 0
    assert stem.steps < 40
    assert all(trained.steps == 40 and trained.best > 0 for _, trained in others)
    assert len(steps) == 80 + stem.steps - 1
    after = errors(student, dense, ["h1", "f"])
    assert all(after[name] < 0.6 * before[name] for name in before)
    assert all(np.array_equal(student.array(name) == 0, zeros[name]) for name in NAMES)
    assert np.array_equal(student.array("wh"), dense.array("wh"))  # behind the last cut


def test_only_what_may_be_trained_changes() -> None:
    dense = residual_net()
    student = magnitude_pruned(dense, NAMES)
    layers, _ = find_layers(student, min_size=1)
    found = tune_blocks(
        dense, student, layers, calibration(dense, 32), None, {"w3"}, Settings(steps=5, lr=0.01), start="h1"
    )
    assert [name for name, _ in found] == ["f"]
    changed = {n for n in dense.index.tensors if not np.array_equal(student.array(n), dense.array(n))}
    assert changed == set(NAMES)
    plain = magnitude_pruned(dense, NAMES)
    assert not np.array_equal(student.array("w3"), plain.array("w3"))
    assert np.array_equal(student.array("w4"), plain.array("w4"))
