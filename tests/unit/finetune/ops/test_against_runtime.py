"""Operators against ONNX Runtime: versions before the newest, and corners that the node tests leave out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.finetune.ops.one_node import Node, assert_gradients, assert_same

X = np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)
M = X[0, 0]
F32, I64 = np.float32, np.int64


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, I64)


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, F32)


OLD = [
    Node("Slice", [X], {"starts": [1, -3], "ends": [9, -1], "axes": [1, -1]}, opset=9),
    Node("Slice", [X], {"starts": [1], "ends": [2]}, opset=9),
    Node("Slice", [X, ints(-1, 4), ints(-9, 0), ints(2, 3), ints(-2, -1)], {}, opset=10),
    Node("Slice", [X, ints(3), ints(-2**63), ints(-1), ints(-1)], {}, opset=13),
    Node("Slice", [X, ints(0), ints(2**63 - 1), ints(1), ints(2)], {}, opset=13),
    Node("Slice", [X, ints(-2**63), ints(2), ints(1), ints(1)], {}, opset=13),
    Node("Split", [X], {"axis": 3, "split": [1, 5]}, 2, opset=11),
    Node("Split", [X], {"axis": -1}, 3, opset=11),
    Node("Split", [X, ints(2, 0, 3)], {"axis": 2}, 3, opset=13),
    Node("Split", [X], {"axis": 2, "num_outputs": 2}, 2, opset=18),
    Node("Squeeze", [X[:1, :1]], {"axes": [0, -3]}, opset=11),
    Node("Squeeze", [X[:1]], {}, opset=11),
    Node("Unsqueeze", [M], {"axes": [3, 0]}, opset=11),
    Node("Unsqueeze", [M, ints(-1, 1)], {}, opset=13),
    Node("Clip", [X], {"min": -0.5}, opset=7),
    Node("Clip", [X], {}, opset=7),
    Node("Clip", [X, None, np.array(0.25, F32)], {}, opset=12),
    Node("Softmax", [X], {"axis": 2}, opset=11),
    Node("Softmax", [X], {}, opset=9),
    Node("Softmax", [X], {"axis": 1}, opset=13),
    Node("LogSoftmax", [X], {"axis": 1}, opset=11),
    Node("Hardmax", [X], {"axis": 2}, opset=11),
    Node("Hardmax", [X], {"axis": 2}, opset=13),
    Node("Pad", [X], {"pads": [0, 0, 1, 2, 0, 0, 0, 3], "value": 1.5}, opset=10),
    Node("Pad", [X], {"pads": [0, 0, 1, 2, 0, 0, 0, 3], "mode": "reflect"}, opset=10),
    Node("Pad", [X, ints(0, 1, 1, 2, 1, 0, 0, 3)], {"mode": "edge"}, opset=13),
    Node("Pad", [X, ints(0, 0, -1, 2, 0, 0, -1, -3), np.array(7, F32)], {}, opset=13),
    Node("Pad", [X, ints(1, 3), None, ints(-1)], {"mode": "wrap"}, opset=19),
    Node("ReduceSum", [X], {"axes": [1, -1], "keepdims": 0}, opset=11),
    Node("ReduceSum", [X], {}, opset=11),
    Node("ReduceSum", [X, ints()], {"noop_with_empty_axes": 1}, opset=13),
    Node("ReduceMean", [X], {"axes": [2, 3]}, opset=13),
    Node("ReduceMean", [X, ints(-2)], {"keepdims": 0}, opset=18),
    Node("ReduceL2", [X], {"axes": [0, 2]}, opset=13),
    Node("ReduceL1", [X], {"axes": [1]}, opset=13),
    Node("ReduceLogSumExp", [X], {"axes": [1, 2]}, opset=13),
    Node("ReduceProd", [X], {"axes": [1, 3], "keepdims": 0}, opset=13),
    Node("ReduceMax", [X], {"axes": [-1]}, opset=11),
    Node("ReduceMin", [X.astype(np.int32)], {"axes": [1]}, opset=13),
    Node("ReduceSumSquare", [X.astype(np.int32)], {"axes": [1]}, opset=13),
    Node("TopK", [X], {"k": 2, "axis": 2}, 2, opset=9),
    Node("TopK", [X, ints(3)], {}, 2, opset=10),
    Node("TopK", [X, ints(3)], {"largest": 0, "axis": 1}, 2, opset=11),
    Node("Upsample", [X], {"scales": [1.0, 1.0, 2.0, 3.0]}, opset=7),
    Node("Upsample", [X, floats(1, 1, 2, 2)], {}, opset=9),
    Node("Upsample", [X, floats(1, 1, 2, 1.5)], {"mode": "linear"}, opset=9),
    Node("Resize", [X, floats(1, 1, 2.3, 2)], {}, opset=10),
    Node("Resize", [X, floats(1, 1, 0.6, 0.5)], {}, opset=10),
    Node("Resize", [X, floats(1, 1, 1.5, 0.5)], {"mode": "linear"}, opset=10),
    Node("BatchNormalization", [X, *([floats(1, 2, 3)] * 4)], {"momentum": 0.5}, opset=7),
    Node("BatchNormalization", [X, *([floats(1, 2, 3)] * 4)], {"epsilon": 0.1}, opset=9),
    Node("Dropout", [X], {"ratio": 0.9}, opset=7),
    Node("Dropout", [X, np.array(0.9, F32)], {"seed": 3}, 2, opset=12),
    Node("GroupNormalization", [X[:, :2], floats(1, 2), floats(3, 4)], {"num_groups": 2}, opset=18),
    Node("Scatter", [X, np.array([[[[1]]]]), np.array([[[[9]]]], F32)], {"axis": 2}, opset=9),
    Node("Cast", [X * 3], {"to": 7}, opset=9),
    Node("ArgMax", [X.round()], {"axis": -1, "keepdims": 0}, opset=11),
    Node("ArgMin", [X.round()], {"axis": 1, "select_last_index": 1}, opset=12),
    Node("CumSum", [X, np.array(-2)], {"reverse": 1, "exclusive": 1}, opset=11),
    Node("Gemm", [M, M, floats(1)], {"alpha": 0.5, "beta": 2.0, "transB": 1}, opset=7),
    Node("Gemm", [M, M, np.arange(6, dtype=F32)], {"transA": 1}, opset=11),
    Node("Tile", [M, ints(2, 3)], {}, opset=6),
    Node("Flatten", [X], {"axis": -2}, opset=11),
    Node("Flatten", [X], {"axis": 0}, opset=9),
    Node("DepthToSpace", [np.repeat(X, 4, 1)[:, :12]], {"blocksize": 2}, opset=9),
    Node("OneHot", [ints(0, -1, 9), np.array(3), floats(2, 5)], {"axis": 0}, opset=11),
    Node("Expand", [M[:, :1], ints(2, 1, 6)], {}, opset=8),
    Node("Reshape", [X, ints(0, -1, 6)], {}, opset=9),
    Node("Reshape", [X[:0], ints(0, 4)], {"allowzero": 1}, opset=14),
    Node("Shape", [X], {}, opset=9),
    Node("Shape", [X], {"start": -3, "end": -1}, opset=15),
    Node("Gather", [X, np.array(-1)], {"axis": 2}, opset=11),
    Node("Gather", [X, np.array([[0, -1], [2, 2]])], {"axis": 1}, opset=11),
    Node("GatherND", [X, np.array([[0, -1], [1, 2]])], {}, opset=11),
    Node("GatherND", [X, np.array([[[1, -1]], [[0, 2]]])], {"batch_dims": 1}, opset=12),
    Node("ScatterND", [M, np.array([[0], [2]]), M[:2]], {"reduction": "max"}, opset=18),
    Node("ScatterND", [M, np.array([[0, 1], [-1, 2]]), floats(5, 6)], {}, opset=11),
    Node("ScatterElements", [M, np.array([[0, 1], [-1, 2]]), M[:2, :2]], {"reduction": "add"}, opset=18),
    Node("Pow", [np.abs(X), X], {}, opset=13),
    Node("Pow", [np.abs(X), np.array(2)], {}, opset=13),
    Node("Pow", [ints(2, 3), floats(0.5, 2)], {}, opset=13),
    Node("Div", [ints(-7, 7), ints(2, -2)], {}, opset=13),
    Node("Mod", [ints(-7, 7), ints(3, -3)], {}, opset=13),
    Node("Mod", [floats(-7, 7), floats(3, -3)], {"fmod": 1}, opset=13),
    Node("Round", [floats(0.5, 1.5, -2.5)], {}, opset=11),
    Node("Range", [np.array(1.0, F32), np.array(2.0, F32), np.array(0.3, F32)], {}, opset=11),
    Node("Range", [np.array(5), np.array(0), np.array(-2)], {}, opset=11),
    Node("LRN", [X], {"size": 3, "alpha": 0.1, "bias": 2.0}, opset=13),
    Node("Trilu", [X, np.array(-1)], {"upper": 0}, opset=14),
    Node("NonZero", [X.round()], {}, opset=13),
    Node("Where", [X > 0, X, floats(0)], {}, opset=9),
    Node("LayerNormalization", [X, X[0, 0, 0], X[0, 0, 1]], {"axis": -1, "epsilon": 0.1}, 3, opset=17),
    Node("LayerNormalization", [X, X[0, 0, 0]], {"axis": 2}, opset=17),
    Node("LpNormalization", [X], {"axis": 1, "p": 1}, opset=9),
    Node("InstanceNormalization", [X, floats(1, 2, 3), floats(3, 2, 1)], {}, opset=9),
    Node("InstanceNormalization", [X[:, :, :1, :1], floats(1, 2, 3), floats(3, 2, 1)], {}, opset=9),
    Node("GroupNormalization", [X[:, :, :1, :1], *([floats(1, 2, 3)] * 2)], {"num_groups": 3}, opset=21),
    Node("LpPool", [X.clip(0)], {"kernel_shape": [1, 2]}, opset=18),
    Node("Shrink", [X], {"bias": 0.1, "lambd": 0.3}, opset=9),
    Node("PRelu", [X, floats(1, 2, 3).reshape(3, 1, 1)], {}, opset=9),
    Node("Softplus", [X * 40], {}, opset=9),
    Node("HardSwish", [X * 3], {}, opset=14),
    Node("Gelu", [X], {"approximate": "tanh"}, opset=20),
]  # fmt: skip

W = np.random.default_rng(1).standard_normal((4, 3, 3, 2)).astype(F32)
WT, BIAS = W.transpose(1, 0, 2, 3).copy(), X[0, 0, 0, :4]
CONV = [
    Node(op, [X, w, *b], {**a, **shape}, opset=17)
    for op, w, b in (("Conv", W, [BIAS]), ("ConvTranspose", WT, []), ("ConvTranspose", WT, [BIAS]))
    for a in (
        {}, {"pads": [1, 0, 2, 1]}, {"strides": [2, 3], "pads": [1, 1, 1, 1]}, {"dilations": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 1]}, {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
        {"auto_pad": "VALID"},
    )
    for shape in ({}, {"kernel_shape": [3, 2]})
]  # fmt: skip
CONV += [
    Node("ConvTranspose", [X, WT], a, opset=11)
    for a in (
        {"strides": [3, 2], "output_padding": [2, 1]}, {"strides": [2, 2], "output_shape": [10, 12]},
        {"strides": [2, 2], "pads": [1, 1, 1, 0], "output_padding": [1, 1]},
        {"strides": [2, 2], "output_shape": [10, 11], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "output_shape": [10, 11], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "output_shape": [10, 11]},
    )
]  # fmt: skip
CONV.append(Node("Conv", [X, W[:3, :1], floats(1, 2, 3)], {"group": 3}, opset=11))
CONV.append(Node("ConvTranspose", [X, W[:3, :1]], {"group": 3, "strides": [2, 2]}, opset=11))

POOL = [
    Node(op, [X], {"kernel_shape": [3, 2], **a}, opset=19)
    for op in ("MaxPool", "AveragePool")
    for a in (
        {}, {"pads": [1, 0, 1, 1]}, {"pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"strides": [2, 2], "ceil_mode": 1}, {"strides": [2, 3], "ceil_mode": 1, "pads": [1, 0, 0, 1]},
        {"strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"dilations": [2, 1]}, {"dilations": [2, 3], "pads": [1, 1, 1, 1]},
    )
]  # fmt: skip
POOL += [
    Node("AveragePool", [X], {"kernel_shape": [3, 2], "count_include_pad": 1, **a}, opset=19)
    for a in (
        {"pads": [1, 1, 1, 1]}, {"pads": [1, 0, 0, 1]}, {"pads": [1, 1, 1, 1], "dilations": [2, 1]},
        {"pads": [1, 1, 0, 0], "ceil_mode": 1, "strides": [3, 2]},
    )
]  # fmt: skip
POOL += [
    Node("MaxPool", [X], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 1, 1, 0]}, 2, opset=12),
    Node("MaxPool", [X], {"kernel_shape": [3, 3], "storage_order": 1}, 2, opset=12),
    Node("MaxPool", [X[0]], {"kernel_shape": [2]}, opset=12),
    Node("LpPool", [X], {"kernel_shape": [2, 2], "p": 3, "pads": [1, 0, 0, 1]}, opset=11),
    Node("GlobalAveragePool", [X], {}, opset=7),
    Node("GlobalMaxPool", [X], {}, opset=7),
    Node("GlobalLpPool", [X], {"p": 3}, opset=7),
]

SIZES = (floats(1, 1, 2, 2), floats(1, 1, 1.7, 2.6), floats(1, 1, 0.6, 0.9))
RESIZE = [
    Node("Resize", [X, None, s], {"mode": mode, "coordinate_transformation_mode": c, **more}, opset=19)
    for s in SIZES
    for c in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric")
    for mode, more in (
        ("linear", {}), ("cubic", {}), ("cubic", {"cubic_coeff_a": -0.5, "exclude_outside": 1}),
        ("nearest", {"nearest_mode": "floor"}), ("nearest", {"nearest_mode": "ceil"}),
        ("nearest", {"nearest_mode": "round_prefer_ceil"}), ("nearest", {}),
    )
    if (c, more.get("nearest_mode")) != ("half_pixel_symmetric", "floor")  # hangs on the last bit
]  # fmt: skip
RESIZE += [
    Node(
        "Resize",
        [X, None, None, ints(2, 3, 9, 4)],
        {"mode": mode, "coordinate_transformation_mode": c},
        opset=13,
    )
    for mode in ("linear", "cubic", "nearest")
    for c in ("half_pixel", "pytorch_half_pixel", "align_corners")
]
RESIZE += [
    Node("Resize", [X, None, floats(1, 1, 0.6, 0.4)], {"mode": mode, "antialias": 1}, opset=18)
    for mode in ("linear", "cubic")
]
RESIZE += [
    Node(
        "Resize",
        [X, None, None, ints(8, 20)],
        {"axes": [2, 3], "mode": "linear", "keep_aspect_ratio_policy": p},
        opset=18,
    )
    for p in ("not_larger", "not_smaller", "stretch")
]
RESIZE.append(
    Node(
        "Resize",
        [X, floats(0, 0, 0.2, -0.3, 1, 1, 0.9, 1.2), None, ints(2, 3, 4, 7)],
        {
            "mode": "linear",
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "extrapolation_value": 9.0,
        },
        opset=13,
    )
)


def text(node: Node) -> str:
    attributes = "-".join(f"{k}={v}" for k, v in node.attributes.items())
    return f"{node.op}-{node.opset}-{attributes}".replace(" ", "")


@pytest.mark.parametrize("node", [*OLD, *CONV, *POOL, *RESIZE], ids=text)
def test_as_onnx_runtime(node: Node) -> None:
    assert_same(node.by_torch(), node.by_ort(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("node", [*CONV, *POOL, *RESIZE], ids=text)
def test_gradients_reach_the_inputs(node: Node) -> None:
    if node.op == "Resize":
        node = node._replace(inputs=[X, *node.inputs[1:]])
        assert_gradients(node, without=range(1, 4))
    else:
        assert_gradients(node)


Z = np.zeros((1, 2, 4, 4), F32)
Z[0, 0, 0, 0] = 1
FLAT = [
    Node("LpPool", [Z], {"kernel_shape": [2, 2]}, opset=18),
    Node("LpPool", [Z], {"kernel_shape": [2, 2], "p": 3}, opset=18),
    Node("GlobalLpPool", [Z], {"p": 3}, opset=18),
    Node("ReduceL2", [Z], {"axes": [2, 3]}, opset=13),
    Node("LpNormalization", [Z], {}, opset=17),
    Node("MeanVarianceNormalization", [Z], {"axes": [2, 3]}, opset=17),
    Node("InstanceNormalization", [Z, floats(1, 2), floats(0, 0)], {}, opset=17),
]


@pytest.mark.parametrize("node", FLAT, ids=text)
def test_gradients_are_moderate_where_a_root_is_of_zero(node: Node) -> None:
    (gradient, *_) = node.gradients()
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 1e4


def test_the_variance_of_values_far_from_zero() -> None:
    """ONNX Runtime takes the difference of two large squares, as the specification is written."""
    far = (X + 3000).astype(np.float64)
    deviation = (far - far.mean((0, 2, 3), keepdims=True)) / far.std((0, 2, 3), keepdims=True)
    (found,) = Node("MeanVarianceNormalization", [far.astype(F32)], {}, opset=13).by_torch()
    np.testing.assert_allclose(found, deviation, atol=1e-3)
    (found,) = Node("MeanVarianceNormalization", [0 * X + 7], {}, opset=13).by_torch()
    assert not found.any()


SCATTERED = [
    Node("ScatterElements", [M, np.array([[0, 1]]), M[:1, :2]], {}, opset=18),
    Node("ScatterElements", [M, np.array([[0, 1]]), M[:1, :2]], {"reduction": "add"}, opset=18),
    Node("ScatterND", [M, np.array([[1]]), M[:1]], {}, opset=18),
    Node("ScatterND", [M, np.array([[1]]), M[:1]], {"reduction": "add"}, opset=18),
    Node("ScatterND", [M, np.array([[1]]), M[:1]], {"reduction": "max"}, opset=18),
    Node("TensorScatter", [X, X[:, :, :1]], {}, opset=24),
]


@pytest.mark.parametrize("node", SCATTERED, ids=text)
def test_updates_may_be_narrower_than_the_rest(node: Node) -> None:
    """As under autocast, where they come from a product."""
    wide = [torch.from_numpy(array) for array in node.inputs if array is not None]
    narrow = [v.bfloat16() if i == len(wide) - 1 else v for i, v in enumerate(wide)]
    (found,), (wanted,) = node.call(*narrow), node.call(*wide)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
