"""Which constants of a model are weights, which of them are trained, and what torch calls them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import onnx
import torch

from onnxprune.errors import ModelError
from onnxprune.finetune import registry
from onnxprune.finetune.dtypes import FLOATS, torch_tensor
from onnxprune.finetune.registry import Unsupported, plain
from onnxprune.finetune.scope import opsets
from onnxprune.model import Model, needed_nodes, outer_reads, subgraphs

PREFIX = "weight:"  # keeps a weight named like a method of torch.nn.Module apart from it
BESIDE = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Where"})
MOVES = frozenset({"Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
MASK = 1e3  # a constant this large that is put beside values hides them: -10000, the lowest float


def torch_name(name: str) -> str:
    """Return the parameter name for an ONNX name: torch allows no dots and no empty name."""
    return PREFIX + name.replace("%", "%25").replace(".", "%2E")


def onnx_name(name: str) -> str:
    """Return the ONNX name of a parameter: the inverse of :func:`torch_name`."""
    return name.removeprefix(PREFIX).replace("%2E", ".").replace("%25", "%")


def float_weights(model: Model, needed: Collection[str]) -> tuple[str, ...]:
    """Return the names in ``needed`` that are float initializers or float Constants of the main graph."""
    tensors = model.index.tensors
    return tuple(name for name in tensors if name in needed and tensors[name].data_type in FLOATS)


def tensor_of(model: Model, name: str, *, widen: bool) -> torch.Tensor:
    """Return weight ``name`` as a torch tensor, half precision as float32 when ``widen``.

    Raises:
        ModelError: when torch has no such element type or the data is broken.
    """
    try:
        return torch_tensor(model.index.tensors[name], widen=widen)
    except Unsupported as error:
        raise ModelError(f"{model.name}: weight {name!r}: {error}") from error


def constant_of(model: Model, name: str, *, widen: bool) -> torch.Tensor | None:
    """Return constant ``name`` as a torch tensor, or None when torch has no such element type."""
    try:
        return torch_tensor(model.index.tensors[name], widen=widen)
    except Unsupported:
        return None


def default_trained(
    model: Model, *, feeds_from: Sequence[str] = (), outputs: Sequence[str] | None = None
) -> set[str]:
    """Return what a view with these arguments trains by default, without making one.

    A weight that only a node inside a function or body wants fixed is among them; the view holds it.
    """
    results = tuple(model.index.outputs) if outputs is None else tuple(outputs)
    positions, reads = needed_nodes(model, set(feeds_from), results)
    return trained_by_default(model, positions, results, float_weights(model, reads - set(feeds_from)))


def trained_by_default(
    model: Model, positions: Sequence[int], outputs: Iterable[str], weights: Iterable[str]
) -> set[str]:
    """Return the weights to train: more than one element, and the outputs change smoothly with them.

    A weight that is only read as a shape, as statistics of BatchNormalization or as a quantisation scale
    is not; nor is one that serves as statistics anywhere, nor a mask or another table that is added to or
    multiplied with values (see :func:`_stands_beside`).
    """
    reached, held = set(outputs), set()
    versions = opsets(model.proto.opset_import)
    for position in reversed(positions):
        node = model.graph.node[position]
        if reached.isdisjoint(node.output):
            continue
        smooth, fixed = _slots(node, versions)
        reached |= smooth
        held |= fixed
    tensors = model.index.tensors
    chosen = {name for name in weights if name in reached - held and _count(tensors[name]) > 1}
    return {name for name in chosen if not _is_mask(model, name)}


def _is_mask(model: Model, name: str) -> bool:
    """Whether a constant is part of the computation, not something that was learnt.

    What is not finite cannot be trained. Of what only stands beside values, vectors are biases and
    scales; full tables are attention masks, anchors or sines of positions, and so is all that is huge.
    """
    array = model.array(name).astype(np.float32)
    if not np.isfinite(array).all():
        return True
    if not _stands_beside(model, name):
        return False
    return sum(size > 1 for size in array.shape) > 1 or float(np.abs(array).max()) >= MASK


def _stands_beside(model: Model, name: str) -> bool:
    """Whether ``name`` only meets other values element by element, as it is or moved."""
    nodes, index = model.graph.node, model.index
    todo, seen = [name], {name}
    while todo:
        value = todo.pop()
        for use in index.uses.get(value, ()):
            node = nodes[use.index]
            moved = node.op_type in MOVES and use.slot == 0
            if plain(node.domain) or use.slot < 0 or not (moved or node.op_type in BESIDE):
                return False
            # A product of constants (a weight and its mask) is one constant more: see who reads it
            if moved or all(other in seen or other in index.tensors for other in node.input):
                fresh = set(node.output) - seen
                seen |= fresh
                todo.extend(fresh)
    return name in index.uses


def never_trained(model: Model, positions: Sequence[int]) -> set[str]:
    """Return the names that some node reads as statistics or as a quantisation scale."""
    versions = opsets(model.proto.opset_import)
    return set().union(*(_slots(model.graph.node[position], versions)[1] for position in positions))


def _slots(node: onnx.NodeProto, versions: dict[str, int]) -> tuple[set[str], set[str]]:
    """Names that ``node`` is differentiable in, and names that it wants fixed."""
    found = registry.find(node.domain, node.op_type, versions.get(plain(node.domain), 0))
    host = found.host if found else ()
    frozen = found.frozen if found else ()
    smooth: set[str] = set()
    for graph in subgraphs(node):
        smooth |= outer_reads(graph)
    if not (found and found.on_host):
        smooth.update(name for i, name in enumerate(node.input) if name and i not in (*host, *frozen))
    return smooth, {name for i, name in enumerate(node.input) if name and i in frozen}


def _count(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count
