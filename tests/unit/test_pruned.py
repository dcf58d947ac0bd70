"""A model that gets no zeros has a plan that says so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from onnxprune.model import Model
from onnxprune.pruned import as_it_is
from onnxprune.recipe import Recipe


def test_no_zeros_are_planned_for_any_layer(build_model: Callable[..., onnx.ModelProto]) -> None:
    text = "g (float[N, 20] x) => (float[N, 3] y) { a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }"
    model = Model(
        build_model(text, {"w1": np.ones((20, 30), np.float32), "w2": np.ones((30, 3), np.float32)})
    )
    pruned = as_it_is(model, Recipe(min_size=100, damping=0.2))
    assert pruned.model is model and [layer.name for layer in pruned.layers] == ["w1"]
    assert [skip.name for skip in pruned.skips] == ["w2"]
    assert pruned.plan.zeros == {"w1": 0}
    assert [(item.name, item.zeros, item.damping) for item in pruned.solved] == [("w1", 0, 0.2)]
