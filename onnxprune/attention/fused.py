"""Operators that are a whole attention, and their probabilities.

The probabilities come from the node itself, which knows its masks, scales, caches and rotations best: some
operators have an output for them; the others are given the identity as values, and ``P I = P``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune import runtime
from onnxprune.attention.block import AttentionBlock, Projections
from onnxprune.attention.walk import Walker
from onnxprune.attributes import attribute
from onnxprune.errors import ModelError
from onnxprune.model import Model, label
from onnxprune.passes.constants import evaluate

Array = NDArray[Any]
Values = Mapping[str, Array]
_PROBABILITIES = 3  # ONNX Attention, qk_matmul_output_mode: after the softmax
_AFTER_SOFTMAX = 2  # GroupQueryAttention, qk_output
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Run:
    """What to run for the probabilities, or for some columns of them.

    Attributes:
        node: a changed copy of the operator's node.
        values: what it reads.
        slot: of the output that holds them.
        columns: how many of them count; None: all.
    """

    node: onnx.NodeProto
    values: Values
    slot: int
    columns: int | None = None


class Operator(Protocol):
    """One operator: how its node is read, and how it tells its probabilities."""

    def block(self, walker: Walker, position: int) -> AttentionBlock:
        """Return the block that node ``position`` is."""

    def probes(self, node: onnx.NodeProto, values: Values) -> Iterator[Run]:
        """Yield what gives the probabilities, columns in order.

        Args:
            node: a copy, which may be changed.
            values: what it reads.
        """


@dataclass(frozen=True)
class _Separate:
    """Queries, keys and values are inputs 0, 1, 2.

    Attributes:
        form: name of the operator.
        heads: attribute with the number of query heads.
        mask: inputs that may hold a mask, the first that is given counts.
        mode: attribute and value that make the operator give its probabilities as output 3; None: it cannot.
    """

    form: str
    heads: str
    mask: tuple[int, ...]
    mode: tuple[str, int] | None = None

    def block(self, walker: Walker, position: int) -> AttentionBlock:
        node = walker.model.graph.node[position]
        query, key, value = (_input(node, slot) for slot in range(3))
        key, value = key or query, value or key or query  # packed
        projected = (walker.projection(name) for name in (query, key, value))
        return AttentionBlock(
            label(node),
            self.form,
            position,
            node.output[0],
            query=query,
            key=key,
            value=value,
            mask=next((_input(node, slot) for slot in self.mask if _input(node, slot)), ""),
            heads=_number(node, self.heads),
            weights=Projections(*projected),
        )

    def probes(self, node: onnx.NodeProto, values: Values) -> Iterator[Run]:
        if self.mode is None:
            yield from _identity_values(node, values)
            return
        _set(node, *self.mode)
        for slot in range(len(node.output), 4):
            node.output.append(f"output{slot}")
        node.output[3] = node.output[3] or "probabilities"
        yield Run(node, values, 3)


@dataclass(frozen=True)
class _Packed:
    """com.microsoft ``Attention``: it projects by itself, ``input 0 @ input 1 + input 2``."""

    form: str

    def block(self, walker: Walker, position: int) -> AttentionBlock:
        node = walker.model.graph.node[position]
        name = walker.weight(_input(node, 1))
        mask = _input(node, 3) or _input(node, 5)
        heads = _number(node, "num_heads")
        weights = Projections(name, name, name)
        return AttentionBlock(
            label(node), self.form, position, node.output[0], mask=mask, heads=heads, weights=weights
        )

    def probes(self, node: onnx.NodeProto, values: Values) -> Iterator[Run]:
        """Features that number the tokens are added, and a projection that makes them the values."""
        if _input(node, 4):
            raise ModelError(f"{label(node)}: its keys and values of the past hide its probabilities")
        heads = _number(node, "num_heads") or 1
        x, weight = values[node.input[0]], values[node.input[1]]
        batch, tokens, features = x.shape
        sizes = attribute(node, "qkv_hidden_sizes")
        width = sum(sizes[:2]) if isinstance(sizes, Sequence) and sizes else weight.shape[1] // 3 * 2
        identity, values = np.eye(tokens, dtype=x.dtype), dict(values)
        names = [f"probe {slot}" for slot in range(3)]
        values[names[0]] = np.concatenate([x, np.broadcast_to(identity, (batch, tokens, tokens))], 2)
        larger = np.zeros((features + tokens, width + heads * tokens), x.dtype)
        larger[:features, :width] = weight[:, :width]
        larger[features:, width:] = np.tile(identity, (1, heads))
        values[names[1]] = larger
        bias = values[node.input[2]][:width] if _input(node, 2) else np.zeros(width, x.dtype)
        values[names[2]] = np.concatenate([bias, np.zeros(heads * tokens, x.dtype)])
        for slot, name in enumerate(names):
            if slot < len(node.input):
                node.input[slot] = name
            else:
                node.input.append(name)
        half = list(sizes[:2]) if isinstance(sizes, Sequence) and sizes else [width // 2, width // 2]
        _set(node, "qkv_hidden_sizes", [*half, heads * tokens])
        del node.output[1:]
        yield Run(node, values, 0)


def _identity_values(node: onnx.NodeProto, values: Values) -> Iterator[Run]:
    """Give ``MultiHeadAttention`` columns of the identity as values, as many at a time as a head has."""
    if not (_input(node, 1) and _input(node, 2)):
        raise ModelError(f"{label(node)}: packed keys and values hide its probabilities")
    heads, value, bias = _number(node, "num_heads") or 1, values[node.input[2]], _input(node, 3)
    past = values[node.input[7]].shape[2] if _input(node, 7) else 0
    batch, keys = value.shape[0], value.shape[1 if value.ndim == 3 else 2]
    size = value.shape[2] // heads if value.ndim == 3 else value.shape[3]
    slots = [2, *([3] if bias else []), *([7] if past else [])]
    for slot in slots:
        node.input[slot] = f"probe {slot}"
    identity = np.eye(past + keys, dtype=value.dtype)
    for first in range(0, past + keys, size):
        part = identity[:, first : first + size]
        columns = np.zeros((past + keys, size), value.dtype)
        columns[:, : part.shape[1]] = part
        new = columns[past:]
        whole = np.tile(new, (1, heads)) if value.ndim == 3 else np.broadcast_to(new, (heads, keys, size))
        feeds = dict(values)
        feeds["probe 2"] = np.ascontiguousarray(np.broadcast_to(whole, (batch, *whole.shape)))
        if bias:
            feeds["probe 3"] = values[bias].copy()
            feeds["probe 3"][-heads * size :] = 0
        if past:
            feeds["probe 7"] = np.broadcast_to(columns[:past], (batch, heads, past, size)).copy()
        yield Run(node, feeds, 0, part.shape[1])


FUSED: Mapping[tuple[str, str], Operator] = {
    ("", "Attention"): _Separate("Attention", "q_num_heads", (3,), ("qk_matmul_output_mode", _PROBABILITIES)),
    (_MICROSOFT, "Attention"): _Packed(f"{_MICROSOFT}.Attention"),
    (_MICROSOFT, "MultiHeadAttention"): _Separate(f"{_MICROSOFT}.MultiHeadAttention", "num_heads", (4, 5)),
    (_MICROSOFT, "GroupQueryAttention"): _Separate(
        f"{_MICROSOFT}.GroupQueryAttention", "num_heads", (10,), ("qk_output", _AFTER_SOFTMAX)
    ),
}


class Probe:
    """Computes the probabilities of one block that is a single operator.

    Args:
        model: the model.
        block: the block.
        constant: values that depend on weights only.
        threads: of ONNX Runtime.

    Attributes:
        reads: the values that :meth:`run` has to be given.
    """

    def __init__(
        self, model: Model, block: AttentionBlock, constant: set[str], threads: int | None = None
    ) -> None:
        self.model, self.block, self.threads = model, block, threads
        self.node = model.graph.node[block.node]
        self.operator = FUSED[self.node.domain, self.node.op_type]
        inputs = [name for name in dict.fromkeys(self.node.input) if name]
        self.reads = tuple(name for name in inputs if name not in constant)
        self._constants = evaluate(model, [name for name in inputs if name in constant])
        self._sessions: dict[bytes, Any] = {}

    def run(self, values: Values) -> Array:
        """Return the probabilities (batch, heads, queries, keys).

        Args:
            values: the node's inputs that are not constant.

        Raises:
            ModelError: when the operator does not tell them.
        """
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        runs = self.operator.probes(node, {**self._constants, **values})
        return np.concatenate([self._run(run)[..., : run.columns] for run in runs], 3)

    def _run(self, run: Run) -> Array:
        """Return an output as (batch, heads, queries, columns)."""
        feeds = {name: run.values[name] for name in dict.fromkeys(run.node.input) if name}
        output = run.node.output[run.slot]
        try:
            (found,) = self._session(run.node, feeds, output).run([output], feeds)
        except Exception as error:  # ORT raises many private classes
            raise ModelError(f"{label(self.node)}: no probabilities: {error}") from error
        if run.slot == 0 and found.ndim == 3:  # (batch, queries, heads * columns)
            found = found.reshape(*found.shape[:2], self.block.heads or 1, -1).swapaxes(1, 2)
        return np.asarray(found)

    def _session(self, node: onnx.NodeProto, feeds: Values, output: str) -> Any:
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in feeds.items()
        ]
        graph = helper.make_graph([node], "probe", inputs, [onnx.ValueInfoProto(name=output)])
        proto = onnx.ModelProto(ir_version=self.model.proto.ir_version, graph=graph)
        proto.opset_import.extend(self.model.proto.opset_import)
        data = proto.SerializeToString(deterministic=True)
        if data not in self._sessions:
            self._sessions[data] = runtime.session(data, threads=self.threads, name=label(self.node))
        return self._sessions[data]


def _input(node: onnx.NodeProto, slot: int) -> str:
    return str(node.input[slot]) if slot < len(node.input) else ""


def _number(node: onnx.NodeProto, name: str) -> int | None:
    value = attribute(node, name)
    return value if isinstance(value, int) else None


def _set(node: onnx.NodeProto, name: str, value: object) -> None:
    """Replace an attribute."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
