"""What makes up for a mean over fewer positions: constants behind it that are scaled.

Where k of d units are zero, the mean over the d - k others is larger by the factor d / (d - k). Behind
``x * w / sqrt(mean(x^2) + eps)`` nothing changes if eps is larger by that factor and w by its root (RMS
normalisation: Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.model import Model, label, only_reader
from onnxprune.storage.edit import is_overridable

_PASS = frozenset(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Transpose", "Dropout"))
# A positive factor goes through them
_HOMOGENEOUS = _PASS | {"Resize", "Upsample", "AveragePool", "MaxPool", "Relu", "LeakyRelu"}
_LINEAR = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose"))
_MOST = 20  # nodes between a mean and what makes up for it


class MeanError(Exception):
    """Nothing makes up for a larger mean; the text says why."""


@dataclass(frozen=True)
class Scaled:
    """A constant that makes up for a mean.

    Attributes:
        node: position of the node that reads it.
        slot: its input.
        power: the constant is multiplied by this power of the factor by which the mean is larger.
        tensor: the stored tensor that it is.
        own: whether nothing else reads the tensor.
    """

    node: int
    slot: int
    power: float
    tensor: str
    own: bool


def made_up_for(model: Model, mean: str) -> list[Scaled]:
    """Return the constants that make up for a larger ``mean``: what is added on the way, then a factor.

    Where there is no factor, it is the matrices behind it.

    Raises:
        MeanError: when there is no such way.
    """
    found: list[Scaled] = []
    value, power = mean, 1.0
    for _ in range(_MOST):
        node = only_reader(model, value)
        if node is None or node.op_type in _LINEAR:
            return [*found, *_matrices(model, value, -power)]
        use = model.index.uses[value][0]
        other = 1 - use.slot
        constant = len(node.input) == 2 and is_stored(model, node.input[other])
        if node.op_type in ("Add", "Max") and constant:
            found.append(scaled(model, use.index, other, power))
        elif node.op_type == "Sqrt":
            power /= 2
        elif node.op_type == "Pow" and constant and not use.slot:
            power *= _number(model, node.input[1])
        elif node.op_type == "Reciprocal":
            power = -power
        elif node.op_type in ("Mul", "Div"):
            divides = node.op_type == "Div"
            if constant:
                return [*found, scaled(model, use.index, other, power if divides else -power)]
            before = None if divides else _factor(model, node.input[other])
            if before is not None:
                return [*found, scaled(model, *before, -power)]
            power = -power if divides and use.slot else power
        elif node.op_type not in _HOMOGENEOUS or use.slot:
            raise MeanError(f"{label(node)} reads it")
        value = node.output[0]
    raise MeanError("no weight follows it")


def _matrices(model: Model, value: str, power: float) -> list[Scaled]:
    """Return the matrices that a value without a scale of its own is multiplied by.

    Raises:
        MeanError: when something else reads it.
    """
    found = []
    for use in model.index.uses.get(value, []):
        node = model.graph.node[use.index]
        if use.slot or node.op_type not in _LINEAR or not is_stored(model, node.input[1]):
            raise MeanError(f"{label(node)} reads it")
        found.append(scaled(model, use.index, 1, power))
    if not found or value in model.index.outputs:
        raise MeanError("no weight follows it")
    return found


def _factor(model: Model, name: str) -> tuple[int, int] | None:
    """Return the node and the slot of the stored factor of a product that one node reads."""
    at = model.index.producer.get(name)
    node = None if at is None else model.graph.node[at]
    if at is None or node is None or node.op_type != "Mul" or only_reader(model, name) is None:
        return None
    slots = [slot for slot in (0, 1) if is_stored(model, node.input[slot])]
    return (at, slots[0]) if len(slots) == 1 else None


def is_stored(model: Model, name: str) -> bool:
    """Whether a value is a stored tensor, perhaps of another type or shape."""
    *_, last = _chain(model, name)
    return last in model.index.tensors


def scaled(model: Model, node: int, slot: int, power: float) -> Scaled:
    """Return the constant that a node reads as what is to be scaled.

    Raises:
        MeanError: when something else reads it as well, unless it is one number, which can be copied.
    """
    chain = [*_chain(model, model.graph.node[node].input[slot])]
    tensor = chain[-1]
    outside = any(name in model.index.outputs or is_overridable(model, name) for name in chain)
    own = not outside and all(len(model.index.uses[name]) == 1 for name in chain)
    size = math.prod(model.index.tensors[tensor].dims)
    if not own and (size > 1 or len(chain) > 1 or is_overridable(model, tensor)):
        raise MeanError(f"its weight {tensor!r} has other readers, or callers may give another")
    return Scaled(node, slot, power, tensor, own)


def _chain(model: Model, name: str) -> Iterator[str]:
    """Yield a value and the values that it is by another type or shape."""
    while True:
        yield name
        position = model.index.producer.get(name)
        node = None if position is None else model.graph.node[position]
        if node is None or node.op_type not in _PASS or name in model.index.tensors:
            return
        name = node.input[0]


def _number(model: Model, name: str) -> float:
    """Return a stored number.

    Raises:
        MeanError: when it is not one.
    """
    array = model.array(name) if name in model.index.tensors else np.empty(0)
    if array.size != 1:
        raise MeanError(f"the exponent {name!r} is not one number")
    return float(array.ravel()[0])
