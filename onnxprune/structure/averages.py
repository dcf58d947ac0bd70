"""Weights that make up for a mean over fewer units: one function an operator, for REWRITES."""

from __future__ import annotations

import math

import numpy as np
import onnx

from onnxprune.attributes import number
from onnxprune.structure.means import Scaled, made_up_for, scaled
from onnxprune.structure.scene import Scene, set_attribute

# Operator -> slot of the scale, and epsilon where the node does not say.
_MEAN_SQUARES = {
    "RMSNormalization": (1, 1e-5),
    "SimplifiedLayerNormalization": (1, 1e-5),
    "SkipSimplifiedLayerNormalization": (2, 1e-12),
}


def mean_square(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """Scale and epsilon of RMS normalisations: the mean square is over fewer features."""
    slot, default = _MEAN_SQUARES[node.op_type]
    shape = scene.old(node.input[0])
    first = int(number(node, "axis", -1)) % len(shape)
    larger = math.prod(shape[first:]) / math.prod(scene.new(node.input[0])[first:])
    if larger > 1:
        set_attribute(node, "epsilon", number(node, "epsilon", default) * larger)
        _multiply(scene, node, scaled(scene.model, position, slot, 0.5), larger)


def mean(scene: Scene, node: onnx.NodeProto, position: int) -> None:
    """What makes up for a mean over fewer units."""
    source, target = node.input[0], node.output[0]
    each = math.prod(scene.old(source)) // math.prod(scene.old(target))
    larger = each * math.prod(scene.new(target)) / math.prod(scene.new(source))
    for item in made_up_for(scene.model, target) if larger > 1 else ():
        _multiply(scene, scene.model.graph.node[item.node], item, larger)


def _multiply(scene: Scene, node: onnx.NodeProto, item: Scaled, larger: float) -> None:
    """Scale a stored tensor, or let the node read one of its own."""
    array = scene.model.array(item.tensor)
    wanted = np.asarray(array.astype(np.float64) * larger**item.power).astype(array.dtype)
    if item.own:
        scene.model.set_array(item.tensor, wanted)
    else:
        scene.parameters.replace(node, item.slot, wanted)
