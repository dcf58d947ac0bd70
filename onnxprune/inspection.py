"""What a model holds: its prunable layers, what is left alone and why."""

from __future__ import annotations

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
from onnxprune.model import Model
from onnxprune.passes.own_constants import own_constants
from onnxprune.passes.unpack import unpack
from onnxprune.recipe import Recipe


@dataclass(frozen=True)
class LayerInfo:
    """One prunable weight.

    Attributes:
        name: of the weight.
        nodes: that use it.
        kind: conv, conv_transpose, gemm, matmul or embedding.
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
class Inspection:
    """The answer of :func:`inspect`; ``inputs`` and ``outputs`` map names to types.

    ``attention`` is None unless it was asked for.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    layers: tuple[LayerInfo, ...]
    skipped: tuple[Skip, ...]
    attention: AttentionInfo | None = None


def inspect(
    model: str | Path | Model | onnx.ModelProto, recipe: Recipe | None = None, *, attention: bool = False
) -> Inspection:
    """List the prunable layers of a model, also of one that is packed already.

    Args:
        model: a path, or a loaded model (left as it is).
        recipe: its ``include``, ``exclude``, ``min_size`` and ``allow_external`` are used.
        attention: also look for attention.

    Raises:
        ModelError: when the model is broken or unsafe.
    """
    recipe = recipe or Recipe()
    whole = model.copy() if isinstance(model, Model) else load(model, allow_external=recipe.allow_external)
    stored = unpack(whole)
    own_constants(whole)  # as pruning for kernels does
    layers, skips = find_layers(
        whole, include=recipe.include, exclude=recipe.exclude, min_size=recipe.min_size
    )
    return Inspection(
        {name: type_text(value.type) for name, value in whole.index.inputs.items()},
        {name: type_text(value.type) for name, value in whole.index.outputs.items()},
        tuple(_info(whole, layer, stored.get(layer.name, "dense")) for layer in layers),
        skips,
        _attention(whole) if attention else None,
    )


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
