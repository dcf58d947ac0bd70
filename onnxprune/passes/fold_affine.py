"""Fold scales and shifts around convolutions into their weights, so that an op with a kernel sees none.

Matches: a Conv with a constant float32 weight that nothing else reads, and behind it BatchNormalization, or
Mul, Div, Add and Sub with constants (one number, or one for each channel); before it Mul and Add with one
number each. Only where nothing else reads the values in between, and none of them is a graph output.
Changes: weight and bias of the Conv take them over (computed in float64), the nodes go, and with them
constants that nobody reads any more. The Conv makes the output of the last node. A shift before a
convolution that pads stays (the padding is not shifted), as one Add in front of it. Shifts alone stay too.
Guarantees: the same function up to rounding; weights keep their names and zeros; the interface is as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune.attributes import attribute
from onnxprune.model import Model, only_reader
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.edit import Names, drop_value_info, is_overridable

Wide = NDArray[np.float64]
_LARGEST_SHIFT = 1e3  # of a shift that a scale is divided out of: more would cost digits


@dataclass(frozen=True)
class _Affine:
    """``scale * y + shift``, per channel or one number; ``nodes`` make ``value`` from y (or from a value).

    ``added``: the Add node that stays, what it is to read, and the number it is to add.
    """

    scale: Wide
    shift: Wide
    nodes: tuple[int, ...]
    value: str
    added: tuple[int, str, float] | None = None


def fold_affine(model: Model) -> int:
    """Fold in place; return the number of nodes that went."""
    folder = _Folder(model)
    for position in range(len(model.graph.node)):
        folder.fold(position)
    return folder.finish()


class _Folder:
    """State of one call: nodes go at the end, so positions and the index stay valid."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = Names(model)
        self.gone: set[int] = set()
        self.read: set[str] = set()
        self.stale: set[str] = set()

    def fold(self, position: int) -> None:
        node = self.model.graph.node[position]
        if not self._is_ours(node):
            return
        after, before = self._after(node), self._before(node)
        if after is None and before is None:
            return
        W = self.model.array(node.input[1]).astype(np.float64)
        bias = node.input[2] if len(node.input) > 2 else ""
        B = self.model.array(bias).astype(np.float64) if bias else np.zeros(len(W))
        if before is not None:
            B = B + before.shift[0] * W.reshape(len(W), -1).sum(axis=1)
            W = W * before.scale[0]
        if after is not None:
            B = B * after.scale + after.shift
            W = W * after.scale.reshape(-1, *[1] * (W.ndim - 1))
        with np.errstate(over="ignore"):
            W, B = W.astype(np.float32), B.astype(np.float32)
        if not (np.isfinite(W).all() and np.isfinite(B).all()):
            return
        self._write(node, bias, W, B)
        if before is not None:
            if before.added is not None:
                self._keep_shift(*before.added)
            self._remove(before.nodes)
            node.input[0] = before.value
        if after is not None:
            self._remove(after.nodes)
            self.stale.add(node.output[0])
            node.output[0] = after.value

    def _is_ours(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
            return False
        return all(self._is_own(name) for name in node.input[1:] if name)

    def _is_own(self, name: str) -> bool:
        """Whether a value is a float32 constant that one node reads, and that callers cannot replace."""
        tensor = self.model.index.tensors.get(name)
        return (
            tensor is not None
            and tensor.data_type == TensorProto.FLOAT
            and only_reader(self.model, name) is not None
            and not is_overridable(self.model, name)
        )

    def _constant(self, name: str, channels: int, rank: int) -> Wide | None:
        """A constant as one number or ``(channels,)``; None when it is none, or lies on other axes."""
        tensor = self.model.index.tensors.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT or is_overridable(self.model, name):
            return None
        dims = list(tensor.dims)
        if math.prod(dims) == 1:
            return self.model.array(name).astype(np.float64).reshape(1) if len(dims) <= rank else None
        place = len(dims) - (rank - 1)
        if place not in (0, 1) or dims[place] != channels or math.prod(dims) != channels:
            return None
        return self.model.array(name).astype(np.float64).reshape(-1)

    def _after(self, node: onnx.NodeProto) -> _Affine | None:
        dims = list(self.model.index.tensors[node.input[1]].dims)
        found = _Affine(np.ones(dims[0]), np.zeros(dims[0]), (), node.output[0])
        scaled = False
        while True:
            step = self._step(found.value, dims[0], len(dims))
            if step is None:
                break
            scaled |= bool((step.scale != 1).any())
            found = _Affine(
                found.scale * step.scale,
                found.shift * step.scale + step.shift,
                (*found.nodes, *step.nodes),
                step.value,
            )
        return found if scaled else None

    def _step(self, value: str, channels: int, rank: int) -> _Affine | None:
        """The one node that reads ``value``, if it scales and shifts."""
        reader = only_reader(self.model, value)
        if reader is None or reader.domain not in ("", "ai.onnx") or len(reader.output) != 1:
            return None
        nodes, output = (self.model.index.uses[value][0].index,), reader.output[0]
        if reader.op_type == "BatchNormalization":
            return self._normalisation(reader, nodes, channels)
        if reader.op_type not in ("Mul", "Div", "Add", "Sub") or reader.input[0] == reader.input[1]:
            return None
        first = reader.input[0] == value
        constant = self._constant(reader.input[1 if first else 0], channels, rank)
        if constant is None or (not first and reader.op_type in ("Div", "Sub")):
            return None
        one, zero = np.ones(1), np.zeros(1)
        if reader.op_type == "Mul":
            return _Affine(constant, zero, nodes, output)
        if reader.op_type == "Div":
            return _Affine(1 / constant, zero, nodes, output) if constant.all() else None
        return _Affine(one, constant if reader.op_type == "Add" else -constant, nodes, output)

    def _normalisation(self, node: onnx.NodeProto, nodes: tuple[int, ...], channels: int) -> _Affine | None:
        constants = [self._constant(name, channels, 2) for name in node.input[1:5]]
        if len(constants) != 4 or any(c is None for c in constants) or attribute(node, "training_mode", 0):
            return None
        gamma, beta, mean, variance = (c for c in constants if c is not None)
        epsilon = attribute(node, "epsilon", 1e-5)
        assert isinstance(epsilon, float)
        scale = gamma / np.sqrt(variance + epsilon)
        return _Affine(scale, beta - mean * scale, nodes, node.output[0])

    def _before(self, node: onnx.NodeProto) -> _Affine | None:
        """``Mul`` with one number, or ``Mul`` and ``Add``, whose result goes into this convolution only."""
        shift = self._scalar(node.input[0], "Add")
        scale = self._scalar(shift.value if shift else node.input[0], "Mul")
        if scale is None or not scale.scale[0]:
            return None
        if shift is None:
            return scale
        both = _Affine(scale.scale, shift.shift, (*scale.nodes, *shift.nodes), scale.value)
        if not _pads(node):
            return both
        # s x + t = s (x + t / s): the shift stays where it is, divided by the scale
        left = float(both.shift[0] / both.scale[0])
        if abs(left) > _LARGEST_SHIFT:
            return None
        output = self.model.graph.node[both.nodes[1]].output[0]
        return _Affine(both.scale, np.zeros(1), both.nodes[:1], output, (both.nodes[1], both.value, left))

    def _scalar(self, value: str, op_type: str) -> _Affine | None:
        """The node that makes ``value`` from another value and one number, for one reader."""
        position = self.model.index.producer.get(value)
        node = self.model.graph.node[position] if position is not None else None
        if position is None or position in self.gone or node is None or node.op_type != op_type:
            return None
        if node.domain not in ("", "ai.onnx") or only_reader(self.model, value) is None:
            return None
        for slot in (0, 1):
            constant = self._constant(node.input[slot], 1, 2)
            if constant is not None and node.input[1 - slot] not in self.model.index.tensors:
                scale, shift = (constant, np.zeros(1)) if op_type == "Mul" else (np.ones(1), constant)
                return _Affine(scale, shift, (position,), node.input[1 - slot])
        return None

    def _keep_shift(self, position: int, value: str, shift: float) -> None:
        """Let the Add at ``position`` add ``shift`` to ``value``."""
        add = self.model.graph.node[position]
        constant = self._new(f"{add.output[0]}_shift", np.array(shift, np.float32))
        self.read.update(add.input)
        del add.input[:]
        add.input.extend([value, constant])

    def _write(self, node: onnx.NodeProto, bias: str, W: NDArray[Any], B: NDArray[Any]) -> None:
        self.model.set_array(node.input[1], W)
        if bias:
            self.model.set_array(bias, B)
            return
        del node.input[2:]
        node.input.append(self._new(f"{node.input[1]}_bias", B))

    def _new(self, name: str, array: NDArray[Any]) -> str:
        name = self.names.fresh(name)
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _remove(self, nodes: tuple[int, ...]) -> None:
        for position in nodes:
            self.gone.add(position)
            self.read.update(self.model.graph.node[position].input)
            self.stale.update(self.model.graph.node[position].output)

    def finish(self) -> int:
        graph = self.model.graph
        kept = {o for i, node in enumerate(graph.node) if i not in self.gone for o in node.output}
        for position in sorted(self.gone, reverse=True):
            del graph.node[position]
        drop_value_info(graph, self.stale - kept)
        self.model.reindex()
        drop_unread(self.model, (n for n in self.read if n not in self.model.index.producer
                                 or n in self.model.index.constants))  # fmt: skip
        return len(self.gone)


def _pads(node: onnx.NodeProto) -> bool:
    automatic = str(attribute(node, "auto_pad", "NOTSET"))
    pads = next((list(a.ints) for a in node.attribute if a.name == "pads"), [])
    return automatic not in ("NOTSET", "VALID") or any(pads)
