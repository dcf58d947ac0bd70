"""Attention of convolutional networks: gates of channels, and energies of places.

A squeeze-and-excite gate (Hu et al., "Squeeze-and-Excitation Networks", 2018) multiplies each channel by a
number computed from the mean of all channels. Where a network looks without being asked shows in the energy
of its activations (Zagoruyko & Komodakis, "Paying More Attention to Attention", 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.attention.walk import MIXES, MOVES, PRODUCTS, Walker
from onnxprune.attributes import attribute
from onnxprune.model import Model, label

Floats = NDArray[np.float32]

_GATES = frozenset(("Sigmoid", "HardSigmoid", "Clip", "Softmax", "Tanh"))
_THROUGH = MOVES | MIXES | _GATES | PRODUCTS
_INSIDE = frozenset(("Relu", "HardSwish", "LeakyRelu", "Gelu", "PRelu", "Elu", "BatchNormalization"))


@dataclass(frozen=True)
class Gate:
    """One channel attention: ``output = features * gate``.

    Attributes:
        name: label of the multiplication.
        features: value that is gated, (samples, channels, *space).
        gate: value (samples, channels, 1, ...).
        output: the product.
        weights: of the layers between the squeeze and the gate, the last one first.
    """

    name: str
    features: str
    gate: str
    output: str
    weights: tuple[str, ...]


def find_gates(model: Model) -> tuple[Gate, ...]:
    """Return the squeeze-and-excite gates in graph order: a product of x with a function of x's means."""
    walker = Walker(model)
    found = []
    for node in model.graph.node:
        if node.op_type != "Mul" or len(walker.activations(node)) != 2:
            continue
        for features, gate in (tuple(node.input), tuple(node.input)[::-1]):
            weights = _squeezed(walker, gate, features)
            if weights is not None:
                found.append(Gate(label(node), features, gate, node.output[0], weights))
                break
    return tuple(found)


def _squeezed(walker: Walker, gate: str, features: str) -> tuple[str, ...] | None:
    """Return the weights between the means of ``features`` and ``gate``; None when it is no such gate."""
    weights: list[str] = []
    bounded = False
    for _, node in walker.back(gate, _THROUGH | _INSIDE):
        bounded = bounded or node.op_type in _GATES
        if node.op_type in PRODUCTS:
            found = walker.weighted(walker.model.index.producer[node.output[0]])
            weights += [found.weight] if found is not None else []
        if _pools(walker.model, node) and node.input[0] == features:
            return tuple(weights) if bounded and weights else None
    return None


def _pools(model: Model, node: onnx.NodeProto) -> bool:
    """Whether the node takes means over the space, so that a number per channel is left."""
    if node.op_type == "ReduceMean":
        given = attribute(node, "axes")
        if given is None and len(node.input) > 1 and node.input[1] in model.index.tensors:
            given = model.array(node.input[1]).tolist()
        return isinstance(given, Sequence) and len(given) > 0 and not {0, 1} & set(given)
    return node.op_type in ("GlobalAveragePool", "AveragePool")


def gate_strength(gate: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return (channels, 2): sums of a gate and of its square over one batch (samples, channels, ...).

    Sums, so that they add over batches; divided by the samples they are means.
    """
    values = np.asarray(gate, dtype=np.float64).reshape(gate.shape[0], gate.shape[1], -1).mean(2)
    return np.stack([values.sum(0), np.square(values).sum(0)], 1)


def energy_map(x: NDArray[np.generic], power: float = 2.0) -> Floats:
    """Return where activations are large: (samples, *space), mean 1 in each sample.

    Args:
        x: (samples, channels, *space).
        power: of the absolute values that are averaged over the channels; 2 in the paper.
    """
    energy = (np.abs(x.astype(np.float64)) ** power).mean(1)
    mean = energy.mean(tuple(range(1, energy.ndim)), keepdims=True)
    # A sample without any activation has no place that counts more than another.
    return np.where(mean > 0, energy / np.where(mean > 0, mean, 1), 1.0).astype(np.float32)
