"""Weights go back by name and nothing else changes; what is kept never becomes zero."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from onnxprune.errors import ModelError
from onnxprune.finetune.view import TorchView
from onnxprune.finetune.writeback import write_back, zero_masks
from onnxprune.model import Model
from tests.unit.finetune.networks import magnitude_pruned, parse, residual_net

NAMES = ("w1", "w2", "w3", "w4")


def pruned_net(dtype: type = np.float32) -> Model:
    model = magnitude_pruned(residual_net(), NAMES)
    if dtype is np.float32:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(dtype), tensor.name)
        tensor.CopyFrom(half)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return Model(proto)


def masks_of(model: Model) -> dict[str, np.ndarray]:
    return zero_masks(model, model.index.tensors)


def test_only_matrices_with_zeros_have_masks() -> None:
    model = pruned_net()
    model.set_array("b1", np.zeros_like(model.array("b1")))
    masks = masks_of(model)
    assert masks.keys() == set(NAMES)
    assert all(0.6 < 1 - mask.mean() < 0.8 for mask in masks.values())
    assert zero_masks(model, ["w2", "wh"]).keys() == {"w2"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_everything_else_stays_byte_for_byte(dtype: type) -> None:
    model = pruned_net(dtype)
    before, masks = model.copy(), masks_of(model)
    view = TorchView(model, trainable=("w1", "b1"))
    with torch.no_grad():
        for name in ("w1", "b1"):
            view.weights[name] += 0.25
    assert set(write_back(model, view, masks)) == {"w1", "b1"}
    old = {t.name: t.SerializeToString() for t in before.graph.initializer}
    changed = {t.name for t in model.graph.initializer if t.SerializeToString() != old[t.name]}
    assert changed == {"w1", "b1"}
    for tensor in model.graph.initializer:
        assert tensor.data_type == before.index.tensors[tensor.name].data_type
    strip = [onnx.ModelProto() for _ in range(2)]
    for copy, source in zip(strip, (model, before), strict=True):
        copy.CopyFrom(source.proto)
        del copy.graph.initializer[:]
    assert strip[0].SerializeToString() == strip[1].SerializeToString()
    assert np.array_equal(model.array("w1") != 0, masks["w1"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_kept_weights_that_round_to_zero_stay_above_it(dtype: type) -> None:
    model = pruned_net(dtype)
    masks = masks_of(model)
    view = TorchView(model, trainable=("w1",))
    with torch.no_grad():
        view.weights["w1"].mul_(1e-12 if dtype is np.float16 else 0)
    write_back(model, view, masks)
    assert np.array_equal(model.array("w1") != 0, masks["w1"])
    assert float(np.abs(model.array("w1").astype(np.float32)).max()) < 1e-6


def test_values_that_do_not_fit_are_refused() -> None:
    model = pruned_net(np.float16)
    view = TorchView(model, trainable=("w1",))
    with torch.no_grad():
        view.weights["w1"].mul_(1e9)
    with pytest.raises(ModelError, match="weight 'w1' became NaN or too large for float16"):
        write_back(model, view, masks_of(model))


def test_a_negative_zero_is_no_change() -> None:
    model = pruned_net()
    model.set_array("w1", np.where(model.array("w1") == 0, np.float32(-0.0), model.array("w1")))
    before = model.array("w1").tobytes()
    assert write_back(model, TorchView(model, trainable=("w1",)), masks_of(model)) == ()
    assert model.array("w1").tobytes() == before


def test_double_precision_is_not_rounded() -> None:
    rng = np.random.default_rng(0)
    text = "g (double[N, 4] x) => (double[N, 4] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    model = parse(text, {"w": rng.normal(size=(4, 4)), "v": rng.normal(size=(4, 4))})
    before, view = model.copy(), TorchView(model)
    assert write_back(model, view, {}) == ()
    with torch.no_grad():
        view.weights["w"].mul_(1 + 1e-12)
    assert write_back(model, view, {}) == ("w",)
    assert np.array_equal(model.array("v"), before.array("v"))
    np.testing.assert_allclose(model.array("w") / before.array("w") - 1, 1e-12, rtol=1e-3)
