"""How large the file will be, before anything is pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.files.tensors import estimated_bytes
from onnxprune.layers import Layer
from onnxprune.model import MAX_PROTO_BYTES, Model
from onnxprune.passes.pack import pack
from onnxprune.passes.sparse_initializer import to_sparse_initializers
from onnxprune.recipe import Recipe


def rough_bytes(model: Model, layers: Sequence[Layer], zeros: Mapping[str, int], recipe: Recipe) -> float:
    """Return about how many bytes the file takes; it falls as zeros are added."""
    total = float(estimated_bytes(model.proto))
    for layer in layers:
        if not zeros[layer.name]:
            continue
        item = layer.dtype.itemsize
        kept = layer.size - zeros[layer.name]
        if recipe.format == "packed":  # a bit a weight or about a byte a gap, and what is kept
            stored = min(layer.size / 8, kept * 1.1) + kept * (
                min(item, 2) if recipe.values == "fp16" else item
            )
        else:  # an index each
            stored = kept * (item + 8.0)
        total += min(0.0, stored - layer.size * item)
    return total


def tried_bytes(model: Model, layers: Sequence[Layer], zeros: Mapping[str, int], recipe: Recipe) -> int:
    """Store the model with its smallest weights set to zero and return the bytes of that.

    Which weights are zero hardly matters: the form ``gaps`` takes a few percent more when they lie unevenly.
    """
    tried = model.copy()
    names = [layer.name for layer in layers if zeros[layer.name]]
    for name in names:
        weight = tried.array(name).copy()
        smallest = np.argsort(np.abs(weight), axis=None, kind="stable")[: zeros[name]]
        weight[np.unravel_index(smallest, weight.shape)] = 0
        tried.set_array(name, weight)
    if recipe.format == "packed":
        pack(tried, names, values="fp16" if recipe.values == "fp16" else "same")
    else:
        to_sparse_initializers(tried, names)
    tensors = estimated_bytes(tried.proto)
    # protobuf counts no further than 2 GiB; there, names and nodes are nothing
    return tensors if tensors > MAX_PROTO_BYTES // 2 else tried.proto.ByteSize()
