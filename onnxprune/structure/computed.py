"""Integer values of the smaller model: what its graph will compute from its shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.attributes import number
from onnxprune.model import Model
from onnxprune.structure.shrunk import Shrunk

T = TypeVar("T")


def computed(model: Model, shrunk: Shrunk, names: Sequence[str]) -> Mapping[str, NDArray[np.int64]]:
    """Return integer values as the smaller model will compute them in the sample run.

    The nodes behind them run, with the new shapes where one asks for a shape, and with what the sample run
    gave where that does not follow from shapes. Names that cannot be followed are left out.
    """
    nodes: dict[int, onnx.NodeProto] = {}
    given: dict[str, NDArray[Any]] = {}
    for position in sorted(_behind(model, names)):
        node = model.graph.node[position]
        source = node.input[0] if node.input else ""
        if node.op_type == "Shape" and source in shrunk.layout.sizes:
            given[node.output[0]] = np.array(shape_part(node, shrunk.shape(source)), np.int64)
        elif node.op_type == "Size" and source in shrunk.layout.sizes:
            given[node.output[0]] = np.array(np.prod(shrunk.shape(source)), np.int64)
        elif _follows(node):
            nodes[position] = node
    made = {output for node in nodes.values() for output in node.output}
    unknown: set[str] = set()
    for position, node in sorted(nodes.items()):
        for name in (name for name in node.input if name and name not in given and name not in made):
            if name in model.index.tensors:
                given[name] = model.array(name)
            elif name in shrunk.layout.numbers:
                given[name] = shrunk.layout.numbers[name]
            else:
                unknown.add(name)
        if not unknown.isdisjoint(node.input):
            unknown.update(node.output)
            del nodes[position]
    found = {name: given.get(name, shrunk.layout.numbers.get(name)) for name in names if name not in made}
    wanted = [name for name in names if name in made and name not in unknown]
    return _run(model, nodes, given, wanted) | {
        name: np.asarray(value, np.int64) for name, value in found.items() if value is not None
    }


def _behind(model: Model, names: Sequence[str]) -> set[int]:
    """Return the positions of the nodes behind values, no further than where a shape is asked for."""
    found: set[int] = set()
    waiting = list(names)
    while waiting:
        position = model.index.producer.get(waiting.pop())
        if position is None or position in found:
            continue
        node = model.graph.node[position]
        found.add(position)
        if _follows(node):
            waiting.extend(name for name in node.input if name and name not in model.index.tensors)
    return found


ARITHMETIC = frozenset((
    "Add", "Sub", "Mul", "Div", "Mod", "Concat", "Gather", "Slice", "Split", "Cast", "Unsqueeze", "Squeeze",
    "Reshape", "Where", "Equal", "ConstantOfShape", "ReduceProd", "Floor", "Ceil", "Transpose", "Min", "Max",
    "Neg", "Flatten", "Expand", "Range", "Identity", "Abs", "Sign", "Round", "Sqrt", "Pow", "Sum", "Clip",
    "ReduceSum", "ReduceMin", "ReduceMax", "CumSum", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Not", "And", "Or", "Xor", "ScatterND", "ScatterElements", "GatherND", "GatherElements", "Tile",
))  # fmt: skip


def _follows(node: onnx.NodeProto) -> bool:
    return node.op_type in ARITHMETIC and node.domain in ("", "ai.onnx")


def shape_part(node: onnx.NodeProto, shape: Sequence[T]) -> list[T]:
    """Return the part of a shape that a ``Shape`` returns."""
    end = int(number(node, "end", len(shape)))
    return [*shape[int(number(node, "start", 0)) : end]]


def _run(
    model: Model, nodes: Mapping[int, onnx.NodeProto], given: Mapping[str, NDArray[Any]], names: list[str]
) -> dict[str, NDArray[np.int64]]:
    if not names:
        return {}
    needed = [nodes[position] for position in sorted(_behind(model, names) & nodes.keys())]
    read = {name for node in needed for name in node.input}
    proto = onnx.ModelProto(ir_version=max(model.proto.ir_version, 4))
    proto.opset_import.extend(model.proto.opset_import)
    proto.graph.name = "shapes"
    proto.graph.node.extend(needed)
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in given.items() if name in read
    )
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        values = runtime.session(proto, threads=1, name=model.name).run(names, {})
    except Exception:  # ORT raises many classes, all private; one value must not keep the others from it
        alone = [_run(model, nodes, given, [name]) for name in names] if len(names) > 1 else []
        return {name: value for each in alone for name, value in each.items()}
    return {name: np.asarray(value, np.int64) for name, value in zip(names, values, strict=True)}
