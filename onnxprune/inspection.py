"""What a model holds: its prunable layers, what is left alone and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxprune.attention.block import AttentionBlock, Rejected
from onnxprune.attention.find import find_attention
from onnxprune.attention.maps import Gate, find_gates
from onnxprune.interface import type_text
from onnxprune.io import load
from onnxprune.layers import Layer, Skip, find_layers
from onnxprune.layers.layer import FLOATS
from onnxprune.model import Model
from onnxprune.opening import fold
from onnxprune.passes.own_constants import own_constants
from onnxprune.passes.own_parameters import own_parameters
from onnxprune.passes.unpack import unpack
from onnxprune.recipe import Recipe
from onnxprune.structure.find import find_structure
from onnxprune.structure.groups import Pinned


@dataclass(frozen=True)
class LayerInfo:
    """One prunable weight.

    Attributes:
        name: of the weight.
        nodes: that use it.
        kind: conv, conv_transpose, gemm, matmul, embedding, rnn_input (W) or rnn_recurrence (R).
        shape: as stored.
        matrix: (groups, out_features, in_features).
        dtype: numpy name.
        weights: number of elements.
        bytes: of the dense tensor.
        zeros: elements that are zero already.
        storage: packed, sparse-initializer or dense.
    """

    name: str
    nodes: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    matrix: tuple[int, int, int]
    dtype: str
    weights: int
    bytes: int
    zeros: int
    storage: str


@dataclass(frozen=True)
class AttentionInfo:
    """The attention of a model: blocks between tokens, gates of channels, and what is none of both."""

    blocks: tuple[AttentionBlock, ...]
    gates: tuple[Gate, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class GroupInfo:
    """Units that can be removed as a whole.

    Attributes:
        name: of the first node that makes them.
        kind: channel, neuron, head, hidden or width.
        units: their number.
        weights: elements that go if all went.
        tensors: the weights they lie in, those that make them first.
    """

    name: str
    kind: str
    units: int
    weights: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class StructureInfo:
    """What can be removed as a whole, and what cannot and why.

    Attributes:
        groups: in graph order.
        pinned: dimensions of weights that cannot shrink.
        weights: elements of all float weights.
        inside: those that lie in a unit of some group.
    """

    groups: tuple[GroupInfo, ...]
    pinned: tuple[Pinned, ...]
    weights: int
    inside: int


@dataclass(frozen=True)
class Inspection:
    """The answer of :func:`inspect`; ``inputs`` and ``outputs`` map names to types.

    ``attention`` and ``structure`` are None unless they were asked for.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    layers: tuple[LayerInfo, ...]
    skipped: tuple[Skip, ...]
    attention: AttentionInfo | None = None
    structure: StructureInfo | None = None


def inspect(
    model: str | Path | Model | onnx.ModelProto,
    recipe: Recipe | None = None,
    *,
    attention: bool = False,
    groups: bool = False,
) -> Inspection:
    """List the prunable layers of a model, also of one that is packed already.

    Args:
        model: a path, or a loaded model (left as it is).
        recipe: its ``include``, ``exclude``, ``min_size`` and ``allow_external`` are used.
        attention: also look for attention.
        groups: also look for channels, heads and other units that can be removed; the model runs once, on
            inputs that are made up.

    Raises:
        DataError: when ``groups`` is set and the model runs on no inputs that can be made up.
        ModelError: when the model is broken or unsafe.
    """
    recipe = recipe or Recipe()
    whole = model.copy() if isinstance(model, Model) else load(model, allow_external=recipe.allow_external)
    stored = unpack(whole)
    own_constants(whole)  # as pruning for kernels does
    fold(whole, recipe)
    layers, skips = find_layers(
        whole, include=recipe.include, exclude=recipe.exclude, min_size=recipe.min_size
    )
    return Inspection(
        {name: type_text(value.type) for name, value in whole.index.inputs.items()},
        {name: type_text(value.type) for name, value in whole.index.outputs.items()},
        tuple(_info(whole, layer, stored.get(layer.name, "dense")) for layer in layers),
        skips,
        _attention(whole) if attention else None,
        _structure(whole) if groups else None,
    )


def _structure(model: Model) -> StructureInfo:
    own_parameters(model)
    found = find_structure(model)
    groups = []
    for group in found.groups:
        parts = sorted(group.parts, key=lambda part: part.role != "producer")
        tensors = tuple(dict.fromkeys(part.tensor for part in parts))
        groups.append(GroupInfo(group.name, group.kind, group.units, int(group.weights.sum()), tensors))
    floats = {name: tensor for name, tensor in model.index.tensors.items() if tensor.data_type in FLOATS}
    weights = sum(math.prod(tensor.dims) for tensor in floats.values())
    inside = sum(found.inside(name) for name in floats)
    return StructureInfo(tuple(groups), found.pinned, weights, inside)


def _attention(model: Model) -> AttentionInfo:
    blocks, rejected = find_attention(model)
    return AttentionInfo(blocks, find_gates(model), rejected)


def _info(model: Model, layer: Layer, storage: str) -> LayerInfo:
    array = model.array(layer.name)
    zeros = array.size - int(np.count_nonzero(array))
    return LayerInfo(
        layer.name,
        layer.nodes,
        layer.kind,
        layer.view.stored,
        layer.view.matrix,
        str(array.dtype),
        array.size,
        array.nbytes,
        zeros,
        storage,
    )
