"""Find the values that everything flows through: the ends of blocks, good to compare and to cut at."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.calibration.collect import find_stages
from onnxprune.layers import Layer
from onnxprune.model import Model, node_reads

MAX_FEATURES = 8
SHAPES = ("Shape", "Size")  # what they give does not depend on the values
FEWEST = 3  # with fewer cut points the inputs of the layers serve as features


def cut_points(model: Model, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Return the values that every path from a layer of ``layers`` to the outputs goes through, in order.

    Only what depends on a layer's weight counts as flowing: attention masks, shapes and the like may run
    beside a cut. Of several cuts with no layer between them (a sum, its LayerNormalization) the last is
    taken. In a residual network these are the ends of the blocks.
    """
    weights = {layer.name for layer in layers}
    sites = {site.node for layer in layers for site in layer.sites}
    reads = [node_reads(node) for node in model.graph.node]
    last: dict[str, int] = {}
    for position, names in enumerate(reads):
        last.update(dict.fromkeys(names, position))
    last.update(dict.fromkeys(model.index.outputs, len(reads)))
    flowing: set[str] = set()
    live: set[str] = set()
    cuts: dict[int, str] = {}  # layers passed so far -> value
    passed = 0
    for position, node in enumerate(model.graph.node):
        reached = not (weights.isdisjoint(reads[position]) and flowing.isdisjoint(reads[position]))
        if reached and node.op_type not in SHAPES:
            made = {name for name in node.output if name}
            if not made <= weights:  # a Constant node that holds a weight
                flowing |= made
                live |= made
        passed += position in sites
        live = {name for name in live if last.get(name, -1) > position}
        if passed and len(live) == 1:
            cuts[passed] = next(iter(live))
    return tuple(dict.fromkeys(name for name in cuts.values() if name not in model.index.outputs))


def features(model: Model, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Return at most :data:`MAX_FEATURES` values inside the model to compare with the dense model's."""
    found = cut_points(model, layers)
    if len(found) < FEWEST:
        values = dict.fromkeys(stage.value for stage in find_stages(model, layers))
        found = tuple(name for name in values if name in model.index.producer)
    count = min(MAX_FEATURES, len(found))
    return tuple(found[(2 * k + 1) * len(found) // (2 * count)] for k in range(count))
