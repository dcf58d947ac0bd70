"""Types and shapes of a model's values: inferred by onnx, and seen when it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import helper, numpy_helper

from onnxprune import runtime
from onnxprune.model import Model, constant_tensor
from onnxprune.passes.constants import evaluate

Dim = int | str | None  # fixed, symbolic, unknown
_SMALL = 1024  # elements of a constant whose values may be a shape
# Ops whose output shape follows from the values of their inputs behind the first.
_BY_VALUE = frozenset(("Pad", "Reshape", "Expand", "Slice", "Resize", "Upsample", "Tile", "ConstantOfShape"))


def infer(model: Model) -> dict[str, onnx.ValueInfoProto]:
    """Return the type of every value of the main graph as far as onnx can tell; weights are not copied."""
    try:
        proto = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        proto = model.proto  # what the exporter wrote
    found = {}
    for values in (proto.graph.value_info, proto.graph.input, proto.graph.output):
        found.update({value.name: value for value in values})
    return found


def skeleton(model: Model) -> onnx.ModelProto:
    """Return a copy of the model in which large constants are inputs of their type and shape.

    Where a shape depends on a value that is computed from constants only, the value takes the nodes' place.
    """
    source = model.proto
    wanted = [n for node in source.graph.node if node.op_type in _BY_VALUE for n in node.input[1:] if n]
    computed = {
        name: numpy_helper.from_array(value, name)
        for name, value in evaluate(model, [n for n in wanted if n not in model.index.tensors]).items()
        if value.size <= _SMALL
    }
    # Before IR version 4 every initializer must be an input too, or inference leaves it out
    proto = onnx.ModelProto(ir_version=max(source.ir_version, 4))
    proto.opset_import.extend(source.opset_import)
    proto.functions.extend(source.functions)
    graph = proto.graph
    graph.name = "skeleton"
    tensors = {tensor.name: tensor for tensor in source.graph.initializer}
    for node in source.graph.node:
        tensor = constant_tensor(node)
        if tensor is not None and math.prod(tensor.dims) > _SMALL:
            tensors[node.output[0]] = tensor
        elif not (len(node.output) == 1 and node.output[0] in computed):
            graph.node.append(node)
    graph.input.extend(value for value in source.graph.input if value.name not in tensors)
    graph.initializer.extend(computed.values())
    graph.output.extend(source.graph.output)
    graph.value_info.extend(source.graph.value_info)
    for name, tensor in tensors.items():
        if math.prod(tensor.dims) > _SMALL:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        else:
            graph.initializer.append(tensor)
    return proto


def observe(
    model: Model, names: Sequence[str], feeds: Sequence[Mapping[str, Any]]
) -> list[dict[str, tuple[int, ...]]]:
    """Run the model on each of ``feeds``; return the shapes that the values ``names`` had."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    present = {value.name for value in proto.graph.output}
    wanted = [name for name in dict.fromkeys(names) if name]
    if not wanted:  # a session that is asked for nothing gives everything
        return [{} for _ in feeds]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    session = runtime.session(proto, name=model.name)
    inputs = [item.name for item in session.get_inputs()]
    seen = []
    for feed in feeds:
        values = session.run(wanted, {name: feed[name] for name in inputs})
        seen.append({name: tuple(value.shape) for name, value in zip(wanted, values, strict=True)})
    return seen


class Shapes:
    """What is known of the shapes of a model's values.

    Args:
        types: of :func:`infer`.
        seen: of :func:`observe`.
    """

    def __init__(
        self,
        types: Mapping[str, onnx.ValueInfoProto],
        seen: Sequence[Mapping[str, tuple[int, ...]]] = (),
    ) -> None:
        self.types, self.seen = types, seen

    def dims(self, name: str) -> tuple[Dim, ...] | None:
        """Return the shape, or None when not even the number of axes is known.

        What was seen is right where a model states another number of axes.
        """
        ranks = {len(shapes[name]) for shapes in self.seen if name in shapes}
        value = self.types.get(name)
        if value is not None and value.type.tensor_type.HasField("shape"):
            dims = tuple(_dim(dim) for dim in value.type.tensor_type.shape.dim)
            if not ranks or ranks == {len(dims)}:
                return dims
        return (None,) * ranks.pop() if len(ranks) == 1 else None

    def rank(self, name: str) -> int | None:
        """Return the number of axes, None when unknown."""
        dims = self.dims(name)
        return None if dims is None else len(dims)

    def equal(self, a: str, b: str) -> bool:
        """Whether two values have the same shape on every input.

        Known when all dimensions carry the same number or symbol. Else equal shapes in every run do, as
        long as no axis was 1 there unless it is fixed: a broadcast has a 1 on one of the sides.
        """
        first, second = self.dims(a), self.dims(b)
        runs = [(shapes[a], shapes[b]) for shapes in self.seen if a in shapes and b in shapes]
        if first is None or second is None:
            rank = len(runs[0][0]) if runs else 0
            first, second = first or (None,) * rank, second or (None,) * rank
        if len(first) != len(second) or any(p != q for p, q in runs):
            return False
        for axis, (p, q) in enumerate(zip(first, second, strict=True)):
            if p is not None and p == q:
                continue
            if (isinstance(p, int) and isinstance(q, int)) or not any(s[axis] > 1 for s, _ in runs):
                return False
        return bool(first or runs)

    def value_info(self, name: str, features: int, axis: int) -> onnx.ValueInfoProto | None:
        """Return the type of a float32 value with ``features`` on ``axis``; None without its rank."""
        dims = self.dims(name)
        if dims is None or not -len(dims) <= axis < len(dims):
            return None
        known: list[Dim] = [None if isinstance(d, str) and d.startswith("unk__") else d for d in dims]
        known[axis] = features
        value: onnx.ValueInfoProto = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, known)
        return value


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None
