"""What must be zero so that the output of an operator is zero for some units: one function a family."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx

from onnxprune.attributes import attribute
from onnxprune.model import label
from onnxprune.structure.labels import Labels, Need, Place
from onnxprune.structure.rules.elementwise import OPERATORS
from onnxprune.structure.rules.products import letters_of

_ADDITIONS = frozenset(("Add", "Sub", "Sum", "Mean", "Max", "Min"))
# They make zero of a zero in their first input.
_UNARY = frozenset((
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Cast", "CastLike", "Ceil", "Celu", "Div", "Dropout", "Elu",
    "Erf", "FastGelu", "Floor", "Gelu", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "PRelu",
    "QuickGelu", "Relu", "Round", "Selu", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
    "ThresholdedRelu",
))  # fmt: skip
# What they make has labels of what they read.
_CARRIERS = frozenset((
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather", "Pad",
    "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "MaxPool", "AveragePool", "GlobalAveragePool",
    "GlobalMaxPool", "Resize", "Upsample", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1",
    "ReduceL2", "ReduceSumSquare",
))  # fmt: skip
_BY_CHANNEL = frozenset(("BatchNormalization", "InstanceNormalization", "GroupNormalization"))
# Operator -> the inputs that scale and shift what it makes.
_AFFINE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_BY_CHANNEL, (1, 2)),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}


def need_of(graph: Labels, node: onnx.NodeProto, name: str, axis: int) -> Need:
    """Return what must be zero so that an axis of an output is zero, or why it cannot be."""
    for operators, find in _FAMILIES:
        if node.op_type in operators:
            return find(graph, node, name, axis)
    return _loud(node)


def _loud(node: onnx.NodeProto) -> str:
    return f"{label(node)} does not make zeros of zeros"


def why_loud(graph: Labels, place: Place) -> str:
    """Return why a place cannot be zero; empty if it can."""
    labels = graph.read(place[0])[place[1]]
    if isinstance(labels, str):
        return labels
    need = () if place[0] in graph.model.index.tensors else graph.needs.get(place, "it is not followed")
    return need if isinstance(need, str) else ""


def _all(graph: Labels, places: Iterable[Place]) -> Need:
    places = tuple(places)
    return next(filter(None, (why_loud(graph, place) for place in places)), places)


def _any(graph: Labels, node: onnx.NodeProto, places: list[Place]) -> Need:
    """Return one that can be zero, a weight before others."""
    stored = graph.model.index.tensors
    places.sort(key=lambda place: place[0] not in stored)
    reasons = [why_loud(graph, place) for place in places]
    if "" in reasons:
        return (places[reasons.index("")],)
    return reasons[0] if reasons else _loud(node)


def _elementwise(graph: Labels, node: onnx.NodeProto, name: str, axis: int) -> Need:
    """Positions along the axis, and numbers that are broadcast over it."""
    behind = len(graph.shape(name)) - axis
    inputs = [(each, len(graph.shape(each)) - behind) for each in graph.node_inputs(node)]
    along = [(each, at) for each, at in inputs if at >= 0 and graph.shape(each)[at] > 1]
    constant = [each for each, at in inputs if (each, at) not in along]
    if node.op_type in _ADDITIONS:
        return _all(graph, along) if all(_is_zero(graph, each) for each in constant) else _loud(node)
    if node.op_type == "Mul":
        return _any(graph, node, along)
    first = [place for place in along if place[0] == node.input[0]]
    kept = node.op_type in _UNARY or (node.op_type in ("Clip", "Pow") and _keeps_zero(graph, node))
    return _all(graph, first) if first and kept else _loud(node)


def _is_zero(graph: Labels, name: str) -> bool:
    return name in graph.model.index.tensors and not graph.model.array(name).any()


def _keeps_zero(graph: Labels, node: onnx.NodeProto) -> bool:
    """Whether the bounds of Clip contain zero, whether the exponent of Pow is above it."""
    names = [*node.input[1:], "", ""][:2]
    if any(name and name not in graph.model.index.tensors for name in names):
        return False
    first, second = (graph.model.array(name) if name else None for name in names)
    if node.op_type == "Pow":
        return first is not None and bool((np.asarray(first) > 0).all())
    least = attribute(node, "min", 0.0) if first is None else first
    most = attribute(node, "max", 0.0) if second is None else second
    return bool((np.asarray(least) <= 0).all() and (np.asarray(most) >= 0).all())


def _product(graph: Labels, node: onnx.NodeProto, name: str, axis: int) -> Need:
    """The operand that the axis comes from, and the bias."""
    terms, result = letters_of(graph, node)
    found = [
        (each, letters.index(result[axis]))
        for each, letters in zip(node.input, terms, strict=False)
        if result[axis] in letters and graph.shape(each)[letters.index(result[axis])] > 1
    ]
    need = _any(graph, node, found)
    return need if isinstance(need, str) else _with_bias(graph, node, axis, need)


def _convolution(graph: Labels, node: onnx.NodeProto, name: str, axis: int) -> Need:
    """The rows of the weight that make the channels, and the bias."""
    rows = 1 if node.op_type == "ConvTranspose" else 0
    if axis != 1 or (rows and attribute(node, "group", 1) != 1):
        return _loud(node)
    need = _any(graph, node, [(node.input[1], rows)])
    return need if isinstance(need, str) else _with_bias(graph, node, axis, need)


def _with_bias(graph: Labels, node: onnx.NodeProto, axis: int, need: tuple[Place, ...]) -> Need:
    bias = node.input[2] if len(node.input) > 2 else ""
    if not bias or _is_zero(graph, bias):
        return need
    last = len(graph.shape(bias)) - 1
    if graph.shape(bias)[last] == 1 or axis != 1:
        return _loud(node)
    return _all(graph, [*need, (bias, last)])


def _carried(graph: Labels, node: onnx.NodeProto, name: str, axis: int) -> Need:
    """The axes that the positions come from."""
    if node.op_type == "Pad" and not _pads_with_zeros(graph, node):
        return _loud(node)
    labels = graph.read(name)[axis]
    found = [
        (each, at)
        for each in graph.node_inputs(node)
        for at, own in enumerate(graph.axes.get(each, ()))
        if not isinstance(own, str) and np.isin(own, labels).any()
    ]
    return _all(graph, found) if found else _loud(node)


def _pads_with_zeros(graph: Labels, node: onnx.NodeProto) -> bool:
    if len(node.input) > 2 and node.input[2]:
        return _is_zero(graph, node.input[2])
    return not attribute(node, "value", 0.0)


def _normalised(graph: Labels, node: onnx.NodeProto, name: str, axis: int) -> Need:
    """Scale and shift; of a sum that the operator also gives out, what it adds."""
    names = [*node.input, *[""] * 5]
    if node.op_type.startswith("Skip") and name == [*node.output, *[""] * 4][3]:
        bias = names[4 if node.op_type == "SkipLayerNormalization" else 3]
        return _all(graph, [(each, len(graph.shape(each)) - 1) for each in (*names[:2], bias) if each])
    if name != node.output[0] or axis != (1 if node.op_type in _BY_CHANNEL else len(graph.shape(name)) - 1):
        return _loud(node)
    own = [names[slot] for slot in _AFFINE[node.op_type] if names[slot]]
    return _all(graph, [(each, len(graph.shape(each)) - 1) for each in own])


_FAMILIES: tuple[tuple[frozenset[str], Callable[[Labels, onnx.NodeProto, str, int], Need]], ...] = (
    (OPERATORS, _elementwise),
    (frozenset(("MatMul", "FusedMatMul", "Gemm", "Einsum")), _product),
    (frozenset(("Conv", "ConvTranspose")), _convolution),
    (_CARRIERS, _carried),
    (frozenset(_AFFINE), _normalised),
)
