"""Counted bytes against a case worked by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from onnxprune.finetune.batches import Batches
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.memory import fit, fitting, saved_bytes
from onnxprune.finetune.view import TorchView
from onnxprune.outputs import FEATURES, OutputKind
from tests.unit.finetune.networks import parse


def test_what_a_layer_keeps() -> None:
    layer, x = nn.Linear(1000, 500, bias=False), torch.ones(64, 1000)
    owned = {layer.weight.untyped_storage().data_ptr()}
    found = saved_bytes(lambda: layer(x).relu().sum(), owned)
    # the input of the layer and the result of the ReLU
    assert found == 4 * 64 * (1000 + 500)
    assert saved_bytes(lambda: layer(x).relu().sum(), set()) == found  # no gradient for x: W is not kept
    with torch.no_grad():
        assert saved_bytes(lambda: layer(x).relu().sum(), owned) == 0


def test_batches_that_fit() -> None:
    assert fitting(4, 400, 16, budget=1000) == 10
    assert fitting(4, 400, 16, budget=10**6) == 16
    assert fitting(4, 400, 16, budget=10) == 1
    assert fitting(1, 0, 16) == 16


def batches_of(*lengths: int) -> Batches:
    x = [np.ones((4, length, 8), np.float32) for length in lengths]
    y = [np.ones((4, length, 6), np.float32) for length in lengths]
    return Batches(range(len(lengths)), lambda n: {"x": x[n]}, lambda n: {"y": y[n]}, size=16)


LOSS = Loss({"y": OutputKind(FEATURES)})
W = np.ones((8, 6), np.float32)


def test_the_longest_sample_says_how_many_fit() -> None:
    view = TorchView(parse("g (float[N, T, 8] x) => (float[N, T, 6] y) { y = MatMul(x, w) }", {"w": W}))
    sizes = []
    for lengths in ((5, 50), (5,), (50,)):
        batches = batches_of(*lengths)
        fit(batches, view, LOSS, budget=20_000)
        sizes.append(batches.size)
    assert sizes[0] == sizes[2] < sizes[1] <= 16


def test_a_model_that_does_not_run_on_one_sample_keeps_its_batches() -> None:
    text = "g (float[N, T, 8] x) => (float[N, T, 6] y) { r = Reshape(x, four) y = MatMul(r, w) }"
    view = TorchView(parse(text, {"w": W, "four": np.array([4, 5, 8])}))
    batches = batches_of(5, 5)
    fit(batches, view, LOSS)
    assert batches.whole
    assert batches.samples == 2
    units = batches.epoch(np.random.default_rng(0))
    assert [len(batches.get(unit)[0]["x"]) for unit in units] == [4, 4]
