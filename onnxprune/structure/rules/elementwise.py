"""Operators that work position by position, with broadcasting: equal positions go together."""

from __future__ import annotations

import onnx

from onnxprune.structure.groups import Axis
from onnxprune.structure.labels import SINGLE, Labels

OPERATORS = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
    "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean",
    "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu",
    "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan",
    "Tanh", "ThresholdedRelu", "Where", "Xor",
    # of com.microsoft
    "BiasGelu", "FastGelu", "QuickGelu",
))  # fmt: skip


def elementwise(graph: Labels, node: onnx.NodeProto) -> None:
    """Join the axes of all inputs, aligned from the last one on."""
    shape = graph.shape(node.output[0])
    axes: list[Axis | None] = [None] * len(shape)
    names = graph.node_inputs(node)
    if node.op_type == "CastLike":
        names = names[:1]
    for name in names:
        own = graph.shape(name)
        for place, axis in enumerate(graph.read(name), len(shape) - len(own)):
            if own[place - len(shape)] == 1:
                continue  # broadcast
            before = axes[place]
            axes[place] = axis if before is None else graph.join(before, axis)
    done = [SINGLE if axis is None else axis for axis in axes]
    for output in node.output:
        graph.write(output, done)
    if node.op_type in ("Add", "Sum") and sum(name not in graph.constants for name in names) > 1:
        for axis in done:
            graph.mark(axis, "sum")
