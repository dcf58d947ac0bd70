"""Give each layer constants of its own where an exporter or an optimiser made equal ones into one.

Matches: nodes that read a constant through ``Identity`` (PyTorch's exporter keeps one of several equal
parameters and lets the rest be copies of it), and Conv, ConvTranspose, Gemm and Add that read a vector which
other nodes read too (deduplicated biases).
Changes: the first read the constant itself, the second a copy of the vector, so that a bias can be corrected
and folded without touching another layer. Matrices stay shared: they are tied weights.
"""

from __future__ import annotations

import onnx

from onnxprune.model import Model
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.edit import Names, is_overridable

_BIAS_SLOTS = {"Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "Add": (0, 1)}
MAX_BIAS = 65536  # elements; a longer vector is no bias


def needs_own_constants(model: Model) -> bool:
    """Whether :func:`own_constants` would change anything."""
    return bool(_through_identity(model) or _shared_biases(model))


def own_constants(model: Model) -> int:
    """Change ``model`` in place; return the number of inputs that read something else now."""
    changed, left = 0, set[str]()
    for node, slot, source in _through_identity(model):
        left.add(node.input[slot])
        node.input[slot] = source
        changed += 1
    model.reindex()
    drop_unread(model, left)
    names, left = Names(model), set()
    for node, slot in _shared_biases(model):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(model.index.tensors[node.input[slot]])
        tensor.name = names.fresh(f"{node.output[0]}_bias")
        left.add(node.input[slot])
        model.graph.initializer.append(tensor)
        node.input[slot] = tensor.name
        changed += 1
    model.reindex()
    drop_unread(model, left)
    return changed


def _through_identity(model: Model) -> list[tuple[onnx.NodeProto, int, str]]:
    """Return (node, slot, constant) of all inputs that are a constant behind ``Identity`` nodes."""
    sources: dict[str, str] = {}  # output of an Identity -> the constant behind it
    found = []
    for node in model.graph.node:  # in order, so chains resolve
        for slot, name in enumerate(node.input):
            if name in sources:
                found.append((node, slot, sources[name]))
        if node.op_type == "Identity" and node.domain in ("", "ai.onnx"):
            name = sources.get(node.input[0], node.input[0])
            if name in model.index.tensors and not is_overridable(model, name):
                sources[node.output[0]] = name
    return found


def _shared_biases(model: Model) -> list[tuple[onnx.NodeProto, int]]:
    """Return (node, slot) of the vectors that are read elsewhere too, but for the first reader of each."""
    seen: set[str] = set()
    found = []
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        for slot in _BIAS_SLOTS.get(node.op_type, ()):
            name = node.input[slot] if slot < len(node.input) else ""
            tensor = model.index.tensors.get(name)
            if tensor is None or not _is_bias(tensor):
                continue
            if is_overridable(model, name) or len(model.index.uses[name]) < 2:
                continue
            others = name in model.index.outputs or len(model.index.uses[name]) > _bias_reads(model, name)
            if name in seen or others:
                found.append((node, slot))
            seen.add(name)
    return found


def _is_bias(tensor: onnx.TensorProto) -> bool:
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return tensor.data_type in kinds and len(tensor.dims) == 1 and 1 < tensor.dims[0] <= MAX_BIAS


def _bias_reads(model: Model, name: str) -> int:
    """Return how many of the uses of a constant are biases."""
    uses = model.index.uses[name]
    return sum(use.slot in _BIAS_SLOTS.get(model.graph.node[use.index].op_type, ()) for use in uses)
