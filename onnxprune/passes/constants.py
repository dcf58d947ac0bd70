"""Values that depend on no input of the model, such as padding that an exporter computes in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.model import Model, subgraphs

_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)


def evaluate(model: Model, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return those of the values ``names`` that are constant."""
    found = {name: model.array(name) for name in names if name in model.index.tensors}
    nodes: set[int] = set()
    constant = []
    for name in dict.fromkeys(names):
        makers = _makers(model, name) if name and name not in found else None
        if makers is not None:
            nodes |= makers
            constant.append(name)
    if constant:
        found |= _run(model, constant, sorted(nodes))
    return found


def _makers(model: Model, name: str) -> set[int] | None:
    """Return the nodes that a value needs, None when one of them reads an input of the model."""
    nodes: set[int] = set()
    waiting = [name]
    while waiting:
        value = waiting.pop()
        if not value or value in model.index.tensors:
            continue
        position = model.index.producer.get(value)
        if position is None:
            return None
        node = model.graph.node[position]
        if node.op_type in _RANDOM or node.domain not in ("", "ai.onnx") or any(subgraphs(node)):
            return None
        if position not in nodes:
            nodes.add(position)
            waiting.extend(node.input)
    return nodes


def _run(model: Model, names: Sequence[str], positions: Sequence[int]) -> dict[str, NDArray[Any]]:
    nodes = [model.graph.node[position] for position in positions]
    made = {output for node in nodes for output in node.output}
    read = {name for node in nodes for name in node.input if name} - made
    proto = onnx.ModelProto(ir_version=max(model.proto.ir_version, 4))
    proto.opset_import.extend(model.proto.opset_import)
    proto.graph.name = "constants"
    proto.graph.node.extend(nodes)
    for name in sorted(read):
        tensor = proto.graph.initializer.add()
        tensor.CopyFrom(model.index.tensors[name])
        tensor.name = name
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        values = runtime.session(proto, threads=1, name=model.name).run(list(names), {})
    except ModelError:  # an output without type, a shape that cannot be: then it is not known
        return {}
    return {n: v for n, v in zip(names, values, strict=True) if isinstance(v, np.ndarray)}
