from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.functions import (
    IMAGES,
    PREFIXES,
    DeviceOp,
    attributes,
    decode,
    device_op,
    layout_of,
    parse,
    refusal,
)
from onnxprune.storage.reference import ACTIVATIONS as REFERENCE
from onnxprune.storage.sparse_functions import ACTIVATIONS


def test_names() -> None:
    for prefix in PREFIXES:
        for activation in ("", *ACTIVATIONS):
            op = DeviceOp(prefix, activation)
            assert parse(op.name) == op
    assert parse("BitmapTileInt8MatMulGeluTanh") == DeviceOp("BitmapTileInt8", "GeluTanh")
    for prefix in IMAGES:
        op = DeviceOp(prefix, "Relu", conv=True)
        assert op.name == f"{prefix}ConvRelu" and parse(op.name) == op
    for name in (
        "DeltaConv",
        "BitmapMatMul",
        "BitmapTileGemm",
        "NMTileMatMulNorm",
        "SparseBitmapMatMul",
        "XDeltaMatMul",
    ):
        assert parse(name) is None
    assert device_op(helper.make_node("DeltaMatMul", [], [], domain="other")) is None
    assert refusal(12) and not refusal(13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("opset", [13, 20])
def test_activations(
    device_model: Callable[..., Any], weight_for: Callable[..., Any], activation: str, opset: int
) -> None:
    import onnxruntime

    limits = {"low": -0.5, "high": 1.5} if activation == "Clip" else {}
    weight = weight_for("delta", (24, 40))
    model, bias = device_model(LAYOUTS["delta"], weight, activation, opset, **limits)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(1).standard_normal((5, 40)).astype(np.float16)
    (found,) = session.run(None, {"X": x})
    assert found.dtype == np.float16
    wanted = x.astype(np.float64) @ weight.astype(np.float64).T + bias
    wanted = np.clip(wanted, -0.5, 1.5) if limits else REFERENCE[activation](wanted)
    np.testing.assert_allclose(found, wanted, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_decode_of_a_node(
    device_model: Callable[..., Any], weight_for: Callable[..., Any], name: str
) -> None:
    layout = LAYOUTS[name]
    weight = weight_for(name, (128, 192))
    model, _ = device_model(layout, weight)
    node = model.graph.node[0]
    assert layout_of(node) is layout
    tensors = [numpy_helper.to_array(t) for t in model.graph.initializer[:-1]]
    found, trans = decode(node, tensors, "w")
    assert not trans and found.shape == (192, 128)
    if layout.exact:
        np.testing.assert_array_equal(found, weight.T)


@pytest.mark.parametrize("name", LAYOUTS)
def test_decode_of_a_convolution(weight_for: Callable[..., Any], name: str) -> None:
    layout = LAYOUTS[name]
    if layout.prefix not in IMAGES:
        pytest.skip("has no Conv")
    weight = weight_for(name, (128, 192))
    node = helper.make_node(DeviceOp(layout.prefix, "", True).name, [], [], domain="onnxprune")
    node.attribute.extend(attributes(layout, 128, 192, 10, True, 5, space=2))
    assert {"trans", "many_rows"}.isdisjoint(attribute.name for attribute in node.attribute)
    found, _ = decode(node, layout.encode(weight), "w")
    assert found.shape == (128, 192, 1, 1)
    if layout.exact:
        np.testing.assert_array_equal(found[:, :, 0, 0], weight)
    for stored in ([128, 192], [128, 192, 3, 1], [192, 128, 1, 1]):
        next(a for a in node.attribute if a.name == "stored").ints[:] = stored
        with pytest.raises(ModelError, match="attribute 'stored' of w"):
            decode(node, layout.encode(weight), "w")


def test_broken_nodes(device_model: Callable[..., Any], weight_for: Callable[..., Any]) -> None:
    layout = LAYOUTS["bitmap-tile"]
    model, _ = device_model(layout, weight_for("bitmap-tile", (40, 200)))
    tensors = [numpy_helper.to_array(t) for t in model.graph.initializer[:-1]]

    def changed(name: str, value: Any) -> onnx.NodeProto:
        node = onnx.NodeProto()
        node.CopyFrom(model.graph.node[0])
        kept = [a for a in node.attribute if a.name != name]
        node.ClearField("attribute")
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
        return node

    with pytest.raises(ModelError, match="wanted two sizes"):
        decode(changed("shape", [3, 4, 5]), tensors, "w")
    with pytest.raises(ModelError, match="mask of w"):
        decode(changed("shape", [200, 4000]), tensors, "w")
    with pytest.raises(ModelError, match="attribute 'grid'"):
        decode(changed("grid", [1, 1]), tensors, "w")
    with pytest.raises(ModelError, match="block_rows 48"):
        decode(changed("block_rows", 48), tensors, "w")
