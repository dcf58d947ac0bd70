"""Normalisations that add a residual branch first: what is left of them without it.

``norm(x + y + b)`` without y is ``norm(x + b)``. It stays the same operator, with x in both places: a
normalisation of twice its input is the same if epsilon is four times as large, and doubling is exact in
floating point. Plain normalisations would need opset 17 (LayerNormalization) or 23 (RMSNormalization).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.attributes import number
from onnxprune.model import Model
from onnxprune.storage.edit import Names
from onnxprune.structure.scene import set_attribute

# Operator -> slot of the bias; epsilon is 1e-12 where a node does not say.
_BIAS = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
_SUM = 3  # output that gives out the sum


def is_fused(model: Model, node: onnx.NodeProto) -> bool:
    """Whether a node adds two values before it normalises, and gives out nothing but norm and sum."""
    if node.op_type not in _BIAS or node.domain != "com.microsoft" or any(node.output[1:_SUM]):
        return False
    bias = _bias(node)
    return not bias or bias in model.index.tensors


def _bias(node: onnx.NodeProto) -> str:
    slot = _BIAS[node.op_type]
    return node.input[slot] if len(node.input) > slot else ""


def norm_alone(model: Model, node: onnx.NodeProto, left: str) -> str:
    """Let a node normalise ``left`` alone, with its bias; the index must be made anew afterwards.

    Returns:
        The sum, if something reads it that has to read ``left`` now; else empty.
    """
    bias = _bias(node)
    total = node.output[_SUM] if len(node.output) > _SUM else ""
    position = list(model.graph.node).index(node)
    node.input[0] = node.input[1] = left
    set_attribute(node, "epsilon", 4 * number(node, "epsilon", 1e-12))
    del node.output[_SUM:]
    if not bias:
        return total
    array = np.asarray(model.array(bias))
    twice = node.input[_BIAS[node.op_type]] = Names(model).fresh(f"{bias}_twice")
    model.graph.initializer.append(numpy_helper.from_array(array + array, twice))
    if total:
        model.graph.node.insert(position, helper.make_node("Add", [left, bias], [total], name=total))
    return ""
