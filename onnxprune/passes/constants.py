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
    wanted = [name for name in dict.fromkeys(names) if name not in found]
    known = _constant_values(model) if wanted else set()
    wanted = [name for name in wanted if name in known]
    if wanted:
        found |= _run(model, wanted, _makers(model, wanted))
    return found


def _constant_values(model: Model) -> set[str]:
    """Return the values that no input of the model reaches."""
    known = set(model.index.tensors)
    for node in model.graph.node:
        if node.op_type in _RANDOM or node.domain not in ("", "ai.onnx") or any(subgraphs(node)):
            continue
        if all(name in known for name in node.input if name):
            known.update(output for output in node.output if output)
    return known


def sources(model: Model, value: str) -> set[str]:
    """Return the tensors of the model that a constant value is made of."""
    read = {name for position in _makers(model, [value]) for name in model.graph.node[position].input}
    return (read | {value}) & model.index.tensors.keys()


def _makers(model: Model, names: Sequence[str]) -> list[int]:
    """Return the positions of the nodes that constant values are made by."""
    nodes: set[int] = set()
    waiting = list(names)
    while waiting:
        value = waiting.pop()
        position = model.index.producer.get(value)
        if position is not None and position not in nodes and value not in model.index.tensors:
            nodes.add(position)
            waiting.extend(model.graph.node[position].input)
    return sorted(nodes)


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
    except (ModelError, RuntimeError):  # no type, none that numpy has (bfloat16), a shape that cannot be
        return {}
    return {n: v for n, v in zip(names, values, strict=True) if isinstance(v, np.ndarray)}
