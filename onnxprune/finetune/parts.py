"""Which part of a model is trained, which of its weights, and which values inside are compared."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from onnxprune.errors import ModelError
from onnxprune.finetune.batches import Feed, Taps
from onnxprune.finetune.cuts import cut_points, features
from onnxprune.finetune.maps import RANK, affordable, attention_maps
from onnxprune.finetune.parameters import default_trained
from onnxprune.finetune.view import unsupported
from onnxprune.layers import Layer
from onnxprune.model import Model


def find_start(model: Model, layers: Sequence[Layer]) -> str:
    """Return the first value behind which every node can run in torch and some can learn; "" when all can.

    Raises:
        ModelError: when there is no such value; the nodes are named.
    """
    gaps, outputs = unsupported(model), list(model.index.outputs)
    if not gaps:
        return ""
    for name in cut_points(model, layers):
        if not unsupported(model, feeds_from=[name]) and trainable(model, name, outputs):
            return name
    listed = "; ".join(str(gap) for gap in gaps[:3])
    raise ModelError(
        f"{model.name} cannot be fine-tuned: {listed}"
        + (f"; and {len(gaps) - 3} more" if len(gaps) > 3 else ""),
        "leave --finetune out: pruning itself works",
    )


def trainable(model: Model, start: str, outputs: Sequence[str]) -> set[str]:
    """Return what a view trains by default but tables: few samples say nothing about most of their rows."""
    names = default_trained(model, feeds_from=[start] if start else (), outputs=outputs)
    nodes, uses = model.graph.node, model.index.uses
    tables = {
        name
        for name in names
        if all(nodes[use.index].op_type == "Gather" and use.slot == 0 for use in uses.get(name, ()))
    }
    return names - tables


def smaller(dense: Model, pruned: Model, names: Collection[str]) -> bool:
    """Whether a weight among ``names`` has fewer elements than the dense model's: units were removed."""
    both = dense.index.tensors.keys() & pruned.index.tensors.keys() & set(names)
    return any(math.prod(dense.index.tensors[n].dims) > math.prod(pruned.index.tensors[n].dims) for n in both)


def compared(
    dense: Model, pruned: Model, layers: Sequence[Layer], start: str, feeds: Feed, threads: int | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return values to compare, and attention maps: what both models have, in one shape, behind the start."""
    position = pruned.index.producer
    begin = position[start] if start else -1
    inner, maps = (
        tuple(n for n in names if n in dense.index.producer and position[n] > begin)
        for names in (features(pruned, layers), attention_maps(pruned))
    )
    if not inner and not maps:
        return (), ()
    wanted, found = (Taps(model, inner + maps, feeds, threads)(feeds) for model in (dense, pruned))
    same = {name for name in inner + maps if wanted[name].shape == found[name].shape}
    sizes = {n: wanted[n][:1].nbytes for n in maps if n in same and wanted[n].ndim == RANK}
    return tuple(name for name in inner if name in same), affordable(sizes)
