"""Counted bytes against a case worked by hand."""

from __future__ import annotations

import torch
from torch import nn

from onnxprune.finetune.memory import fitting, saved_bytes


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
