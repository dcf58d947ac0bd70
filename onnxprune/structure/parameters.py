"""Integer inputs that hold shapes and bounds, after units went: constants, and what a graph computes.

Exporters write shapes as constants, or compute them by Shape, Gather and Concat. What is computed is often
right by itself. So it is computed for the smaller model, and only elements that come out wrong are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.storage.edit import Names
from onnxprune.structure.shrunk import Shrunk

Wanted = Sequence[int | None]  # None: any number


class Parameters:
    """Replaces integer inputs of nodes of a model.

    Args:
        model: the smaller model while it is made; weights may already be sliced.
        shrunk: the shapes that its values get.
    """

    def __init__(self, model: Model, shrunk: Shrunk) -> None:
        self.model, self.shrunk = model, shrunk
        self.names = Names(model)
        self.new_nodes: list[tuple[int, onnx.NodeProto]] = []  # (position to stand before, node)
        self.left: set[str] = set()  # inputs that were replaced
        self._computed: dict[str, NDArray[np.int64] | None] = {}

    def prepare(self, names: Sequence[str]) -> None:
        """Compute the integer values ``names`` as the smaller model will."""
        wanted = [n for n in dict.fromkeys(names) if n and n not in self.model.index.tensors]
        self._computed.update(computed(self.model, self.shrunk, wanted))

    def value(self, name: str) -> NDArray[np.int64] | None:
        """Return what an integer value is in the smaller model, None when that is not known."""
        if name in self.model.index.tensors:
            return np.asarray(self.model.array(name), np.int64)
        return self._computed.get(name)

    def is_constant(self, name: str) -> bool:
        """Whether a value is stored."""
        return name in self.model.index.tensors

    def replace(self, node: onnx.NodeProto, slot: int, array: NDArray[Any]) -> None:
        """Let ``node`` read a new constant."""
        while len(node.input) <= slot:
            node.input.append("")
        if node.input[slot]:
            self.left.add(node.input[slot])
        name = self.names.fresh(f"{node.output[0]}_{slot}")
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        node.input[slot] = name

    def set(
        self, node: onnx.NodeProto, position: int, slot: int, wanted: Wanted, fixed: Sequence[bool]
    ) -> None:
        """Let input ``slot`` of ``node`` hold ``wanted``.

        Args:
            node: the reader.
            position: of the node in the graph.
            slot: the input.
            wanted: its elements in the sample run.
            fixed: for each element, whether it is the same for every input of the model.
        """
        found = self.value(node.input[slot])
        if found is not None and _agree(found.ravel(), wanted):
            return
        if self.is_constant(node.input[slot]) and found is not None:
            shape, array = found.shape, found.ravel().copy()
            for place, number in enumerate(wanted):
                if number is not None:
                    array[place] = number
            self.replace(node, slot, array.reshape(shape))
        elif all(fixed) and None not in wanted:
            self.replace(node, slot, np.array(wanted, np.int64))
        else:
            self._patch(node, position, slot, wanted, fixed, found)

    def _patch(
        self, node: onnx.NodeProto, position: int, slot: int, wanted: Wanted, fixed: Sequence[bool],
        found: NDArray[np.int64] | None,
    ) -> None:  # fmt: skip
        """Replace the elements that are wrong in what the graph computes, by ``Where``."""
        if found is None:
            wrong = [number is not None and known for number, known in zip(wanted, fixed, strict=True)]
        else:
            pairs = zip(found.ravel().tolist(), wanted, strict=True)
            wrong = [number is not None and number != value for value, number in pairs]
        dynamic = [place for place, bad in enumerate(wrong) if bad and not fixed[place]]
        free = node.op_type == "Reshape" and (found is None or -1 not in found.ravel())
        if len(dynamic) > int(free):
            raise ModelError(f"a shape that {node.op_type} {node.name!r} reads cannot be followed")
        numbers = np.array([0 if n is None else n for n in wanted], np.int64)
        numbers[dynamic] = -1
        mask, right = (self.names.fresh(f"{node.output[0]}_{what}") for what in ("wrong", "right"))
        self.model.graph.initializer.extend(
            (numpy_helper.from_array(np.array(wrong), mask), numpy_helper.from_array(numbers, right))
        )
        output = self.names.fresh(f"{node.output[0]}_shape")
        self.new_nodes.append(
            (position, helper.make_node("Where", [mask, right, node.input[slot]], [output], name=output))
        )
        node.input[slot] = output


def _agree(found: NDArray[np.int64], wanted: Wanted) -> bool:
    return len(found) == len(wanted) and all(
        w is None or w == f for f, w in zip(found.tolist(), wanted, strict=True)
    )


def computed(model: Model, shrunk: Shrunk, names: Sequence[str]) -> Mapping[str, NDArray[np.int64]]:
    """Return integer values as the smaller model will compute them in the sample run.

    The nodes behind them run, with the new shapes where one asks for a shape, and with what the sample run
    gave where that does not follow from shapes.
    """
    nodes: dict[int, onnx.NodeProto] = {}
    given: dict[str, NDArray[Any]] = {}
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        position = model.index.producer.get(name)
        node = model.graph.node[position] if position is not None else None
        if name in model.index.tensors:
            given[name] = model.array(name)
        elif node is not None and node.op_type == "Shape" and node.input[0] in shrunk.layout.sizes:
            given[name] = _shape(node, shrunk.shape(node.input[0]))
        elif node is not None and node.op_type == "Size" and node.input[0] in shrunk.layout.sizes:
            given[name] = np.array(np.prod(shrunk.shape(node.input[0])), np.int64)
        elif node is not None and position is not None and _follows(node):
            nodes[position] = node
            waiting.extend(node.input)
        elif name in shrunk.layout.numbers:
            given[name] = shrunk.layout.numbers[name]
        else:
            return {}
    return _run(model, [nodes[p] for p in sorted(nodes)], given, [n for n in names if n not in given]) | {
        name: given[name].astype(np.int64) for name in names if name in given
    }


_ARITHMETIC = frozenset((
    "Add", "Sub", "Mul", "Div", "Mod", "Concat", "Gather", "Slice", "Split", "Cast", "Unsqueeze", "Squeeze",
    "Reshape", "Where", "Equal", "ConstantOfShape", "ReduceProd", "Floor", "Ceil", "Transpose", "Min", "Max",
    "Neg", "Flatten", "Expand", "Range", "Identity",
))  # fmt: skip


def _follows(node: onnx.NodeProto) -> bool:
    return node.op_type in _ARITHMETIC and node.domain in ("", "ai.onnx")


def _shape(node: onnx.NodeProto, shape: tuple[int, ...]) -> NDArray[np.int64]:
    numbers = {item.name: item.i for item in node.attribute}
    return np.array(shape[numbers.get("start", 0) : numbers.get("end", len(shape))], np.int64)


def _run(
    model: Model, nodes: list[onnx.NodeProto], given: Mapping[str, NDArray[Any]], names: list[str]
) -> dict[str, NDArray[np.int64]]:
    if not names:
        return {}
    proto = onnx.ModelProto(ir_version=max(model.proto.ir_version, 4))
    proto.opset_import.extend(model.proto.opset_import)
    proto.graph.name = "shapes"
    stored = {output for node in nodes if node.op_type == "Constant" for output in node.output}
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in given.items()
        if name not in stored
    )
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        values = runtime.session(proto, threads=1, name=model.name).run(names, {})
    except ModelError:
        return {}
    return {name: np.asarray(value, np.int64) for name, value in zip(names, values, strict=True)}
