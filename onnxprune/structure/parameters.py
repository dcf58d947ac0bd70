"""Integer inputs that hold shapes and bounds, after units went: constants, and what a graph computes.

Exporters write shapes as constants, or compute them by Shape, Gather and Concat. What is computed is often
right by itself. So it is computed for the smaller model, and only elements that come out wrong are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.storage.edit import Names, raise_ir_version
from onnxprune.structure.computed import computed
from onnxprune.structure.shrunk import Shrunk

_JOINS = {"Concat", "Cast", "Identity"}  # what the elements of a shape go through

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
        node.input[slot] = self._constant(f"{node.output[0]}_{slot}", array)

    def _constant(self, wanted: str, array: NDArray[Any]) -> str:
        name = self.names.fresh(wanted)
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        raise_ir_version(self.model, 4, set())  # before it, each constant must be an input as well
        return name

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
        stored = self._stored(node.input[slot])
        if len(stored) == len(fixed):
            fixed = [a or b for a, b in zip(fixed, stored, strict=True)]
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

    def _stored(self, name: str) -> list[bool]:
        """Return for each element of an integer value whether it is a stored one, put in by a ``Concat``."""
        index = self.model.index
        size = int(np.prod(self.shrunk.layout.sizes.get(name, ()), dtype=np.int64))
        if name in index.tensors:
            return [True] * size
        node = self.model.graph.node[index.producer[name]] if name in index.producer else None
        if node is not None and node.op_type in _JOINS and node.domain in ("", "ai.onnx"):
            return [stored for part in node.input for stored in self._stored(part)]
        return [False] * size

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
        mask = self._constant(f"{node.output[0]}_wrong", np.array(wrong))
        right = self._constant(f"{node.output[0]}_right", numbers)
        output = self.names.fresh(f"{node.output[0]}_shape")
        self.new_nodes.append(
            (position, helper.make_node("Where", [mask, right, node.input[slot]], [output], name=output))
        )
        node.input[slot] = output


def _agree(found: NDArray[np.int64], wanted: Wanted) -> bool:
    return len(found) == len(wanted) and all(
        w is None or w == f for f, w in zip(found.tolist(), wanted, strict=True)
    )
