"""Models of one op for CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.storage.device import LAYOUTS
from onnxprune.storage.device.functions import DeviceOp, attributes
from onnxprune.storage.form import Array, onnx_type


def model_of(
    name: str,
    weight: Array,
    activation: str = "",
    many_rows: int | None = None,
    space: int = 0,
    opset: int = 17,
    **changes: Any,
) -> onnx.ModelProto:
    """A node whose weight (N, K) lies in a layout, with its function; ``changes``: other initializers.

    With ``space`` spatial axes a 1x1 convolution.
    """
    layout, kind = LAYOUTS[name], onnx_type(weight.dtype)
    rows, cols = weight.shape
    op = DeviceOp(layout.prefix, activation, bool(space))
    limits = {"low": -0.5, "high": 0.75} if activation == "Clip" else {}
    node = helper.make_node(
        op.name, ["X", *layout.inputs, "B"], ["Y"], "the node", domain="onnxprune", **limits
    )
    node.attribute.extend(attributes(layout, rows, cols, kind, False, many_rows, space))
    bias = np.random.default_rng(9).standard_normal(rows).astype(weight.dtype)
    arrays = dict(zip(layout.inputs, layout.encode(weight), strict=True)) | {"B": bias} | changes
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("X", kind, ["M", cols, *[f"P{axis}" for axis in range(space)]] if space else ["M", 2, cols])],
        [value("Y", kind, None)],
        [numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("onnxprune", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    model.functions.append(op.function(opset))
    return model
