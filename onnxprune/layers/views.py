"""How each operator uses its weight: one function per operator, a line in :data:`BUILDERS`."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.attributes import attribute, ints, number
from onnxprune.layers.bias import find_bias, find_residual
from onnxprune.layers.layer import Layer, MatrixView, RefusalError, Site, Window
from onnxprune.layers.recurrent import GATES, recurrent
from onnxprune.model import Model, label


def _dtype(model: Model, name: str) -> np.dtype[np.generic]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(model.index.tensors[name].data_type))


def _site(model: Model, position: int, slot: int, bias_value: str) -> Site:
    node = model.graph.node[position]
    if node.input[slot] in model.index.tensors:
        raise RefusalError("both operands are constants")
    return Site(position, node.input[slot], node.output[0], find_residual(model, bias_value))


def _conv(
    model: Model, name: str, dims: tuple[int, ...], node: onnx.NodeProto, position: int, slot: int
) -> Layer:
    if slot != 1 or len(dims) < 3:
        raise RefusalError(f"is input {slot} of {node.op_type}, not its weight")
    groups = int(number(node, "group", 1))
    transposed = node.op_type == "ConvTranspose"
    if groups < 1 or dims[0] % groups:
        raise RefusalError(f"{dims[0]} channels do not divide into {groups} groups")
    if transposed:
        # Each input position adds W^T x to a window of outputs: rows are (output channel, offset).
        inputs, rest = dims[0] // groups, dims[1:]
        split = (groups, inputs, int(np.prod(rest)))
        view = MatrixView(dims, split, (0, 2, 1), (groups, int(np.prod(rest)), inputs))
    else:
        outputs, features = dims[0] // groups, int(np.prod(dims[1:]))
        view = MatrixView(dims, (groups, outputs, features), (0, 1, 2), (groups, outputs, features))
    rank = len(dims) - 2
    window = Window(
        dims[2:],
        ints(node, "strides", (1,) * rank),
        ints(node, "dilations", (1,) * rank),
        ints(node, "pads", (0,) * (2 * rank)),
        str(attribute(node, "auto_pad", "NOTSET")),
    )
    bias, value = (None, node.output[0]) if transposed else find_bias(model, node, 2, dims[0])
    return Layer(
        name,
        "conv_transpose" if transposed else "conv",
        view,
        _dtype(model, name),
        (_site(model, position, 0, value),),
        (label(node),),
        window,
        bias,
    )


def _gemm(
    model: Model, name: str, dims: tuple[int, ...], node: onnx.NodeProto, position: int, slot: int
) -> Layer:
    if slot != 1:
        raise RefusalError(f"is input {slot} of Gemm; only a constant B is supported")
    trans_b, trans_a = bool(number(node, "transB", 0)), bool(number(node, "transA", 0))
    alpha = number(node, "alpha", 1.0)
    if alpha == 0:
        raise RefusalError("has no effect: alpha of its Gemm is 0")
    out, features = dims if trans_b else dims[::-1]
    view = MatrixView(dims, dims, (0, 1) if trans_b else (1, 0), (1, out, features))
    bias, value = find_bias(model, node, 2, out, number(node, "beta", 1.0))
    return Layer(
        name,
        "gemm",
        view,
        _dtype(model, name),
        (_site(model, position, 0, value),),
        (label(node),),
        bias=bias,
        transposed_input=trans_a,
        alpha=alpha,
    )


def _matmul(
    model: Model, name: str, dims: tuple[int, ...], node: onnx.NodeProto, position: int, slot: int
) -> Layer:
    if len(dims) < 2:
        raise RefusalError("is a vector")
    batch = int(np.prod(dims[:-2]))
    rows, columns = dims[-2:]
    split = (batch, rows, columns)
    if slot == 1:
        view = MatrixView(dims, split, (0, 2, 1), (batch, columns, rows))
    else:
        view = MatrixView(dims, split, (0, 1, 2), (batch, rows, columns))
    # A left-hand constant mixes rows, so the bias that follows is not one number per output feature.
    bias, value = find_bias(model, node, -1, columns) if slot == 1 and batch == 1 else (None, node.output[0])
    return Layer(
        name,
        "matmul",
        view,
        _dtype(model, name),
        (_site(model, position, 1 - slot, value),),
        (label(node),),
        bias=bias,
        transposed_input=slot == 0,
    )


def _gather(
    model: Model, name: str, dims: tuple[int, ...], node: onnx.NodeProto, position: int, slot: int
) -> Layer:
    if slot != 0 or len(dims) != 2 or int(number(node, "axis", 0)) != 0:
        raise RefusalError("is gathered, but not as the rows of a table")
    view = MatrixView(dims, dims, (0, 1), (1, dims[0], dims[1]))
    if node.input[1] in model.index.tensors:
        raise RefusalError("gathered with constant indices")
    return Layer(
        name, "embedding", view, _dtype(model, name), (_site(model, position, 1, ""),), (label(node),)
    )


BUILDERS = {
    **{"Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul, "Gather": _gather},
    **dict.fromkeys(GATES, recurrent),
}
