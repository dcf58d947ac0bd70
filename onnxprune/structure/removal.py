"""Take units out of a model: weights are sliced, and what says how many there are is rewritten.

Matches: every stored tensor with an axis on which units lie, and every node with an attribute or an integer
input that counts them. Changes: the tensors, those attributes and inputs, the types of values in between.
Guarantees: names, inputs, outputs, opset, metadata and doc strings are as they were; the result equals the
model in which the units are masked, which :mod:`onnxprune.structure.check` tests.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.model import Model
from onnxprune.passes.shapes import Shapes, infer
from onnxprune.passes.unread import drop_unread
from onnxprune.storage.edit import drop_value_info, fill
from onnxprune.structure.groups import Structure
from onnxprune.structure.masking import Removed, check_removed
from onnxprune.structure.parameters import Parameters
from onnxprune.structure.rewrite import READS, REWRITES
from onnxprune.structure.scene import Scene
from onnxprune.structure.shrunk import Shrunk


def remove_units(model: Model, structure: Structure, removed: Removed) -> Model:
    """Return a smaller copy of the model.

    Args:
        model: the model, or one with other values in the same weights.
        structure: of the model.
        removed: group name -> bool (units,), True for each unit that goes.

    Raises:
        UsageError: when a name is unknown, a mask does not fit, or no unit would be left.
        ModelError: when a shape in the graph cannot be rewritten.
    """
    check_removed(structure, removed)
    result = model.copy()
    shrunk = Shrunk(structure, dict(removed))
    types = Shapes(infer(model), (structure.layout.sizes,))
    slice_tensors(result, shrunk)
    _rewrite(result, shrunk, types)
    _retype(result, shrunk)
    result.reindex()
    return result


def slice_tensors(model: Model, shrunk: Shrunk) -> None:
    """Take the positions that go out of every stored tensor, in place."""
    inputs = {value.name: value for value in model.graph.input}
    for name, tensor in model.index.tensors.items():
        kept = [(axis, shrunk.kept(name, axis)) for axis in range(len(tensor.dims))]
        if all(mask is None for _, mask in kept):
            continue
        array = model.array(name)
        for axis, mask in kept:
            if mask is not None:
                array = np.compress(mask, array, axis)
        fill(tensor, numpy_helper.from_array(np.ascontiguousarray(array), name))
        if name in inputs:  # a listing beside the initializer, as old IR versions want it
            dims = inputs[name].type.tensor_type.shape.dim
            for dim, size in zip(dims, array.shape, strict=True):
                dim.dim_value = size


def _retype(model: Model, shrunk: Shrunk) -> None:
    """Give the types of values in between their new shapes, as far as they state any.

    They are kept, since operators without shape inference leave readers of their output without a type.
    """
    stale = set()
    for value in model.graph.value_info:
        if not shrunk.changed(value.name):
            continue
        dims, shape = value.type.tensor_type.shape.dim, shrunk.layout.sizes[value.name]
        for axis, dim in enumerate(dims):
            if len(dims) != len(shape) or (dim.HasField("dim_value") and dim.dim_value != shape[axis]):
                stale.add(value.name)  # it is not what the value is in a run
                break
            if shrunk.kept(value.name, axis) is not None:
                if dim.HasField("dim_value"):
                    dim.dim_value = shrunk.size(value.name, axis)
                else:
                    dim.Clear()
    drop_value_info(model.graph, stale)


def _rewrite(model: Model, shrunk: Shrunk, types: Shapes) -> None:
    """Rewrite the nodes around values that shrink, in place."""
    todo = []
    for position, node in enumerate(model.graph.node):
        domain = "" if node.domain == "ai.onnx" else node.domain
        rewrite = REWRITES.get((domain, node.op_type))
        if rewrite is not None and _known(node, shrunk):
            todo.append((position, node, rewrite))
    parameters = Parameters(model, shrunk)
    parameters.prepare([
        node.input[slot]
        for _, node, _ in todo
        for slot in READS.get(node.op_type, ())
        if slot < len(node.input)
    ])  # fmt: skip

    def fixed(name: str, axis: int) -> bool:
        dims = types.dims(name)
        return dims is not None and isinstance(dims[axis], int)

    scene = Scene(model, shrunk, parameters, fixed)
    for position, node, rewrite in todo:
        rewrite(scene, node, position)
    _insert(model, parameters.new_nodes)
    model.reindex()
    drop_unread(model, parameters.left)


def _known(node: onnx.NodeProto, shrunk: Shrunk) -> bool:
    """Whether the shapes around a node are known and anything there may change."""
    sizes = shrunk.layout.sizes
    return all(name in sizes for name in (*node.input[:1], *node.output[:1]) if name)


def _insert(model: Model, nodes: list[tuple[int, onnx.NodeProto]]) -> None:
    for position, node in sorted(nodes, key=lambda item: -item[0]):
        model.graph.node.insert(position, node)
