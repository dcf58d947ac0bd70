"""How much each output of a gated convolution counts: as far as its squeeze-and-excite gate is open.

What the convolution gets wrong is multiplied by the gate before anybody sees it, so that its squared error
counts by the mean square of the gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.attention.maps import Gate, find_gates, gate_strength
from onnxprune.attention.walk import Walker
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import DENSE, Streams
from onnxprune.layers import Layer
from onnxprune.model import Model

Floats = NDArray[np.float32]
LEAST = 0.1  # of the mean of the gates: what a channel counts at least
# Between a convolution and its gate: each channel by itself
_BETWEEN = frozenset((
    "BatchNormalization", "Relu", "LeakyRelu", "PRelu", "HardSwish", "Swish", "Gelu", "Elu", "Mish", "Clip",
    "Sigmoid", "HardSigmoid", "Mul", "Add", "Identity",
))  # fmt: skip


def gated_layers(model: Model, layers: Sequence[Layer]) -> list[tuple[Gate, Layer]]:
    """Return the gates of the model with the convolution whose outputs each multiplies, and nothing else.

    Outputs that are read beside the gate count in full there: such a gate says nothing.
    """
    walker, found = Walker(model), []
    made = {site.output: layer for layer in layers if layer.kind == "conv" for site in layer.sites}
    for gate in find_gates(model):
        readers = {position for position, _, _ in walker.readers(gate.features)}
        squeeze = {
            position
            for position, node, _ in walker.readers(gate.features)
            if node.op_type in ("GlobalAveragePool", "AveragePool", "ReduceMean")
        }
        product = walker.model.index.producer[gate.output]
        if readers - squeeze != {product} or gate.features in model.index.outputs:
            continue
        for value, _ in walker.back(gate.features, _BETWEEN):
            if value in made:
                if len(made[value].sites) == 1:
                    found.append((gate, made[value]))
                break
    return found


def gate_weights(
    model: Model,
    layers: Sequence[Layer],
    data: CalibrationData,
    store: ArrayStore,
    threads: int | None = None,
) -> dict[str, Floats]:
    """Return how much the outputs of gated convolutions count; costs one forward pass up to the last gate.

    Args:
        model: the dense model.
        layers: what will be pruned.
        data: calibration batches.
        store: where activations live.
        threads: of ONNX Runtime.

    Returns:
        Layer name -> (groups, out_features), mean 1: the root mean square of the gate of each channel.
    """
    gated = gated_layers(model, layers)
    if not gated:
        return {}
    targets = [gate.gate for gate, _ in gated]
    streams = Streams(model, None, data.batches, set(targets), store, threads, data.batched)
    weights: dict[str, Floats] = {}
    done: list[str] = []
    for gate, layer in gated:
        streams.advance([gate.gate], done)
        done = [gate.gate]
        sums = sum(gate_strength(streams.value(gate.gate, n, DENSE)) for n in range(streams.size))
        rows = weights_of(np.asarray(sums)[:, 1], layer)
        if rows is not None:
            weights[layer.name] = rows
    return weights


def weights_of(squares: NDArray[np.float64], layer: Layer) -> Floats | None:
    """Return the weights (groups, out_features) of one layer; None when the gate has other channels.

    Args:
        squares: (channels,) sums of the squared gate.
        layer: the convolution.
    """
    groups, outputs, _ = layer.view.matrix
    mean = squares.mean()
    if len(squares) != groups * outputs or not mean > 0:
        return None
    rows = np.maximum(np.sqrt(squares / mean), LEAST)
    return np.asarray(rows / rows.mean(), dtype=np.float32).reshape(groups, outputs)
