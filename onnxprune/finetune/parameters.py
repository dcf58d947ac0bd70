"""Which constants of a model are weights, which of them are trained, and what torch calls them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx
import torch

from onnxprune.errors import ModelError
from onnxprune.finetune import registry
from onnxprune.finetune.dtypes import FLOATS, torch_tensor
from onnxprune.finetune.registry import Unsupported
from onnxprune.model import Model, node_reads, outer_reads, subgraphs

PREFIX = "weight:"  # keeps a weight named like a method of torch.nn.Module apart from it


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


def needed_nodes(model: Model, feeds: Collection[str], outputs: Iterable[str]) -> tuple[list[int], set[str]]:
    """Walk back from ``outputs`` and stop at ``feeds``.

    Returns:
        The positions of the nodes to run, in graph order, and every value name that is read.
    """
    producer, nodes = model.index.producer, model.graph.node
    reads, todo = set(outputs), list(outputs)
    found: set[int] = set()
    while todo:
        position = producer.get(name) if (name := todo.pop()) not in feeds else None
        if position is None or position in found:
            continue
        found.add(position)
        fresh = set(node_reads(nodes[position])) - reads
        reads |= fresh
        todo.extend(fresh)
    return sorted(found), reads


def trained_by_default(
    model: Model, positions: Sequence[int], outputs: Iterable[str], weights: Iterable[str]
) -> set[str]:
    """Return the weights to train: more than one element, and the outputs change smoothly with them.

    A weight that is only read as a shape, as statistics of BatchNormalization or as a quantisation scale
    is not; nor is one that serves as statistics anywhere.
    """
    reached, held = set(outputs), set()
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.proto.opset_import}
    for position in reversed(positions):
        node = model.graph.node[position]
        if reached.isdisjoint(node.output):
            continue
        smooth, fixed = _slots(node, opsets)
        reached |= smooth
        held |= fixed
    tensors = model.index.tensors
    return {name for name in weights if name in reached - held and _count(tensors[name]) > 1}


def never_trained(model: Model, positions: Sequence[int]) -> set[str]:
    """Return the names that some node reads as statistics or as a quantisation scale."""
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.proto.opset_import}
    return set().union(*(_slots(model.graph.node[position], opsets)[1] for position in positions))


def _slots(node: onnx.NodeProto, opsets: dict[str, int]) -> tuple[set[str], set[str]]:
    """Names that ``node`` is differentiable in, and names that it wants fixed."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    found = registry.find(node.domain, node.op_type, opsets.get(domain, 0))
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
