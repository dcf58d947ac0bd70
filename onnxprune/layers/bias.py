"""What is added to a layer's output: its bias, and the residual behind it."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.layers.layer import FLOATS, Bias
from onnxprune.model import Model, only_reader


def private_constant(model: Model, name: str, size: int) -> bool:
    """True for a float constant of ``size`` elements that exactly one node reads."""
    tensor = model.index.tensors.get(name)
    return (
        tensor is not None
        and tensor.data_type in FLOATS
        and int(np.prod(tensor.dims)) == size
        and len(model.index.uses.get(name, [])) == 1
        and name not in model.index.outputs
    )


def find_bias(
    model: Model, node: onnx.NodeProto, slot: int, size: int, scale: float = 1.0
) -> tuple[Bias | None, str]:
    """Find the constant that shifts the node's output, and the value that holds the shifted output."""
    output = node.output[0]
    if 0 <= slot < len(node.input) and node.input[slot]:
        usable = scale != 0 and private_constant(model, node.input[slot], size)
        # C of a Gemm may be a column, one number for each row of the input.
        usable = usable and (node.op_type == "Conv" or _is_per_feature(model, node, node.input[slot]))
        return (Bias(node.input[slot], 1, scale) if usable else None), output
    reader = only_reader(model, output)
    if reader is None or reader.domain not in ("", "ai.onnx"):
        return None, output
    # After a MatMul of three or more axes it would normalise tokens, not features.
    normalised = reader.op_type == "BatchNormalization" and node.op_type != "MatMul"
    if normalised and private_constant(model, reader.input[3], size):
        return Bias(reader.input[3], -1, 1.0), output
    if reader.op_type == "Add":
        other = reader.input[1] if reader.input[0] == output else reader.input[0]
        if private_constant(model, other, size) and _is_per_feature(model, node, other):
            return Bias(other, 1, 1.0), reader.output[0]
    return None, output


def _is_per_feature(model: Model, node: onnx.NodeProto, constant: str) -> bool:
    """True when ``constant`` broadcasts along the output features: the last axis, axis 1 of a Conv."""
    dims = list(model.index.tensors[constant].dims)
    size = int(np.prod(dims))
    if node.op_type == "Conv":
        rank = len(next(model.index.tensors[i].dims for i in node.input[1:2] if i in model.index.tensors))
        return len(dims) >= rank - 1 and dims[len(dims) - rank + 1] == size
    return bool(dims) and dims[-1] == size


def find_residual(model: Model, value: str) -> str:
    """Return the other operand when ``value`` only goes into an Add of two activations."""
    reader = only_reader(model, value) if value else None
    if reader is None or reader.op_type != "Add" or reader.domain not in ("", "ai.onnx"):
        return ""
    other = reader.input[1] if reader.input[0] == value else reader.input[0]
    return "" if other == value or other in model.index.tensors else other
