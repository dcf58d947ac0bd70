"""How long each layer will take: its dense cost, divided by what a sparse kernel gains there.

Predictions choose between patterns before anything is pruned; which nodes really get a kernel is measured
afterwards (:mod:`onnxprune.kernels.select`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.kernels.table import expected_gain, kind_of
from onnxprune.layers import Layer, Site
from onnxprune.layers.recurrent import GATES
from onnxprune.model import Model
from onnxprune.passes.shapes import observe
from onnxprune.profiling import op_seconds
from onnxprune.solvers.patterns import Pattern

Grid = NDArray[np.float64]
PRODUCTS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "Gemm", "FusedGemm", *GATES)


@dataclass(frozen=True)
class Times:
    """Where the dense model spends its time on one sample.

    Attributes:
        whole: seconds.
        layers: layer name -> seconds.
        multiplications: layer name -> how many.
    """

    whole: float
    layers: dict[str, float]
    multiplications: dict[str, float]

    @classmethod
    def of(cls, costs: dict[str, float]) -> Times:
        """Return times in proportion to the multiplications, without anything else in the model."""
        return cls(sum(costs.values()), costs, costs)

    def speedup(self, spent: Mapping[str, float]) -> float:
        """Return how many times faster the model is when these layers take so many seconds."""
        return self.whole / (self.whole - sum(self.layers[name] for name in spent) + sum(spent.values()))


def layer_times(
    model: Model, layers: Sequence[Layer], feeds: Sequence[Mapping[str, Any]], threads: int | None = None
) -> Times:
    """Measure the dense model; what its products take is divided among the layers by their multiplications.

    ONNX Runtime renames and joins nodes, so its profiler tells operators apart, not layers. Products of two
    activations count as time of the layers where they are no ``FusedMatMul``.
    """
    costs = dense_costs(model, layers, feeds)
    seconds = op_seconds(model, feeds, threads=threads)
    products = sum(seconds.get(op, 0.0) for op in PRODUCTS)
    total = sum(costs.values()) or 1.0
    return Times(sum(seconds.values()), {name: products * c / total for name, c in costs.items()}, costs)


def dense_costs(
    model: Model, layers: Sequence[Layer], feeds: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the multiplications of each layer on ``feeds``; looking rows up in a table costs none."""
    sites = [site for layer in layers for site in layer.sites if layer.kind != "embedding"]
    seen = observe(model, [site.recurrence.x if site.recurrence else site.output for site in sites], feeds)
    return {
        layer.name: float(sum(_positions(layer, site, shapes) for shapes in seen for site in layer.sites))
        * layer.size
        for layer in layers
    }


def _positions(layer: Layer, site: Site, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return how often the layer's matrix is multiplied at a site."""
    if site.recurrence is not None:  # once for each step of each sequence
        return float(np.prod(shapes.get(site.recurrence.x, (0,))[:2]))
    if site.output not in shapes:
        return 0.0
    groups, rows, _ = layer.view.matrix
    # conv_transpose spreads each input position, so its cost is a little less than this.
    return float(np.prod(shapes[site.output])) / (groups * rows)


def relative_times(layer: Layer, pattern: Pattern, sparsities: Grid) -> Grid:
    """Return the time at each sparsity as a share of the dense time: 1 where no kernel is faster."""
    consumer = {"conv": "Conv", "gemm": "Gemm", "matmul": "MatMul"}.get(layer.kind)
    if consumer is None or layer.view.matrix[0] > 1:
        return np.ones(len(sparsities))
    kind = kind_of(consumer, layer.view.stored)
    rows = pattern.rows if pattern.kind == "block" else 1
    gains = np.array([expected_gain(kind, rows, 1.0 - s) for s in sparsities.tolist()])
    return np.asarray(1.0 / np.maximum(gains, 1.0))
