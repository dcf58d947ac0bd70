"""Make all weights plain tensors again: the inverse of :mod:`onnxprune.passes.pack`.

Matches: nodes of domain ``onnxprune``, sparse initializers, ``Constant`` nodes with a ``sparse_value``.
Changes: decodes their tensors; a fused op becomes the standard op it was, a ``Decode`` node goes. An op with
a kernel (:mod:`onnxprune.passes.sparse_ops`, ``device_ops``) becomes the standard nodes of its epilogue as
well; what was put around one for CUDA, casts to 16 bits and back, stays. Removes the functions and the opset
import of our domain. What was a ``Constant`` node is one again. Guarantees: the graph that was packed: same
nodes, attributes and names, weights bit for bit (-0.0 is 0.0, float16 values are widened). The order of
initializers, type information of initializers and the IR version may differ; of an op with a kernel, also how
its epilogue is written and what the values inside are called. Broken packed data raises before the model is
changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model import Model, label, subgraphs
from onnxprune.passes.expand import NO_BIAS, expand, expand_device
from onnxprune.storage import coo
from onnxprune.storage.device import functions as device
from onnxprune.storage.domain import check_domain, drop_functions, form_of, packed_inputs, sparse_op
from onnxprune.storage.edit import Names, drop_initializers, fill
from onnxprune.storage.form import DOMAIN, Array, Form, Packed
from onnxprune.storage.functions import consumer_with, same_value, set_attributes

_OURS = ("shape", "dtype", "shape_tensor")  # and those of the form


_Key = tuple[tuple[str, ...], tuple[int, ...], int]  # names of the packed tensors, shape, data type


@dataclass(frozen=True)
class _Node:
    """One of our nodes, checked: where it is and the dense weight that it stands for.

    A node whose weight is dense has no packed tensors: ``key`` and ``array`` are empty.
    """

    position: int
    suffix: str
    key: _Key
    array: Array


def unpack(model: Model) -> dict[str, str]:
    """Decode every packed or sparse weight of ``model`` in place.

    Returns:
        Weight name -> the form it had: ``packed`` or ``sparse-initializer``. Empty when all was dense.

    Raises:
        ModelError: when packed data is corrupt, not constant, or written by a newer version.
    """
    check_domain(model.proto, model.name)
    _refuse_inside(model.graph, model.name)
    found = dict.fromkeys(_Unpacker(model).run(), "packed")
    found |= dict.fromkeys(coo.densify(model.graph), "sparse-initializer")
    drop_functions(model.proto)
    model.reindex()
    return found


def _refuse_inside(graph: onnx.GraphProto, name: str) -> None:
    """Raise when a subgraph holds a node of ours: pack never puts one there."""
    for outer in graph.node:
        for inner in subgraphs(outer):
            for node in inner.node:
                if node.domain == DOMAIN:
                    raise ModelError(f"{name}: {_where(node)} is in a subgraph, wanted in the main graph")
            _refuse_inside(inner, name)


def _where(node: onnx.NodeProto) -> str:
    return f"node {label(node)!r} ({DOMAIN}.{node.op_type})"


class _Unpacker:
    """State of one call. Other tools may have merged equal tensors, so several nodes can share them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = Names(model)
        self.positions = [i for i, node in enumerate(model.graph.node) if node.domain == DOMAIN]
        self.claimed: set[str] = set()  # values whose tensor becomes a dense weight
        self.shared: dict[_Key, str] = {}  # weight of a fused op -> its name, for ops that share it
        self.instead: dict[int, list[onnx.NodeProto]] = {}  # position -> nodes that come there

    def run(self) -> list[str]:
        """Decode the weights of all our nodes; return their names."""
        arrays: dict[_Key, Array] = {}
        nodes = [self._read(position, arrays) for position in self.positions]
        # Weights that a node of their own decodes first: ops with a kernel may share their tensors
        nodes.sort(key=lambda item: not self._only_decodes(item))
        weights = [self._restore(node) for node in nodes]
        self._clean({name for node in nodes for name in node.key[0]})
        return [name for name in dict.fromkeys(weights) if name]

    def _only_decodes(self, item: _Node) -> bool:
        form, suffix = form_of(self.model.graph.node[item.position])
        return form is not None and suffix in form.decoders

    def _read(self, position: int, arrays: dict[_Key, Array]) -> _Node:
        """Check one node and decode its weight; nothing is changed yet."""
        model, node = self.model, self.model.graph.node[position]
        form, suffix = form_of(node)
        if device.device_op(node) is not None:
            return self._read_device(position, arrays)
        if form is None:
            packed_inputs(node)  # for its checks
            return _Node(position, suffix, ((), (), 0), np.empty(0))
        attributes = {attribute.name: attribute for attribute in node.attribute}
        for wanted, kind in (("shape", onnx.AttributeProto.INTS), ("dtype", onnx.AttributeProto.INT)):
            if wanted not in attributes or attributes[wanted].type != kind:
                raise ModelError(
                    f"{model.name}: {_where(node)} has no attribute {wanted!r} of the right type"
                )
        names = packed_inputs(node)
        for name in names:
            if name not in model.index.tensors:
                raise ModelError(
                    f"{model.name}: input {name!r} of {_where(node)} is not a constant of the main graph"
                )
        key = (tuple(names), tuple(attributes["shape"].ints), attributes["dtype"].i)
        if key not in arrays:
            packed = Packed(tuple(model.array(name) for name in names), key[1], key[2])
            arrays[key] = form.decode(packed, f"the weight of {_where(node)}")
            self._check_attributes(node, form, packed)
        return _Node(position, suffix, key, arrays[key])

    def _check_attributes(self, node: onnx.NodeProto, form: Form, packed: Packed) -> None:
        """Raise unless the node has the attributes from which the body decodes ``packed``."""
        found, wanted = {attribute.name: attribute for attribute in node.attribute}, onnx.NodeProto()
        set_attributes(wanted, form, packed, self.model.opset)
        for attribute in wanted.attribute:
            name = attribute.name
            if name not in found or not same_value(found[name], attribute):
                value = "what its tensors need" if attribute.HasField("t") else list(attribute.ints)
                raise ModelError(f"{self.model.name}: attribute {name!r} of {_where(node)} is not {value}")

    def _read_device(self, position: int, arrays: dict[_Key, Array]) -> _Node:
        """The same for a node whose weight is in a layout for CUDA; its values come last in the key."""
        model, node = self.model, self.model.graph.node[position]
        names = packed_inputs(node)
        for name in names:
            if name not in model.index.tensors:
                raise ModelError(
                    f"{model.name}: input {name!r} of {_where(node)} is not a constant of the main graph"
                )
        layout = device.layout_of(node)
        values = names[layout.inputs.index("values")]
        number = {a.name: a.i for a in node.attribute}
        # "stored" only of convolutions
        shape, stored = (
            next((tuple(a.ints) for a in node.attribute if a.name == name), ())
            for name in ("shape", "stored")
        )
        key = (
            (*(n for n in names if n != values), values),
            (*shape, number.get("trans", 0), *stored),
            number.get("dtype", 0),
        )
        if key not in arrays:
            tensors = [model.array(name) for name in names]
            arrays[key], _ = device.decode(node, tensors, f"the weight of {_where(node)}")
        return _Node(position, "", key, arrays[key])

    def _restore(self, item: _Node) -> str:
        """Make the standard node of a fused one, and store the weight; return its name, if it was packed."""
        node = self.model.graph.node[item.position]
        form, _ = form_of(node)
        op, for_cuda = sparse_op(node), device.device_op(node)
        if for_cuda is not None:
            weight = self._weight(item)
            self.instead[item.position] = expand_device(node, for_cuda, weight, self.model.opset, self.names)
            return weight
        if op is not None:
            weight = self._weight(item) if form is not None else ""
            self.instead[item.position] = expand(
                node, op, weight or node.input[1], self.model.opset, self.names
            )
            return weight
        consumer = consumer_with(item.suffix)
        if consumer is None or form is None:
            self._store(item, node.output[0])
            self.shared.setdefault(item.key, str(node.output[0]))
            return str(node.output[0])
        others = [node.input[0], *node.input[1 + len(item.key[0]) :]]
        self._weight(item)
        others.insert(consumer.slot, self.shared[item.key])
        node.op_type = consumer.op
        node.ClearField("domain")
        node.ClearField("input")
        node.input.extend(others)
        for position in range(len(node.attribute) - 1, -1, -1):
            if node.attribute[position].name in (*_OURS, *form.attributes, *form.attributes_before_11):
                del node.attribute[position]
        return self.shared[item.key]

    def _weight(self, item: _Node) -> str:
        """Store the dense weight of a fused op unless another one did; return its name."""
        if item.key not in self.shared:
            free = item.key[0][-1] not in self.claimed and not self._foreign(item.key[0][-1])
            name = item.key[0][-1] if free else self.names.fresh(f"{item.key[0][-1]}_dense")
            self._store(item, name)
            self.shared[item.key] = name
        return self.shared[item.key]

    def _store(self, item: _Node, name: str) -> None:
        """Put the dense weight where its values were, or in a new initializer when others need them."""
        values, fresh = item.key[0][-1], numpy_helper.from_array(item.array, name)
        if values in self.claimed or self._foreign(values):
            self.model.graph.initializer.append(fresh)
            return
        self.claimed.add(values)
        tensor, home = self.model.index.tensors[values], self.model.index.constants.get(values)
        fill(tensor, fresh)
        if home is None:
            tensor.name = name
        else:
            self.model.graph.node[home].output[0] = name

    def _foreign(self, name: str) -> bool:
        """Whether a packed tensor is read by anything that is not ours."""
        ours = set(self.positions)
        uses = self.model.index.uses.get(name, [])
        return name in self.model.index.outputs or any(use.index not in ours or use.slot < 0 for use in uses)

    def _clean(self, packed: set[str]) -> None:
        """Remove packed tensors that nobody reads now, and the nodes that only decoded."""
        gone = {name for name in packed - self.claimed if not self._foreign(name)}
        zeros = {name for name in self.model.index.uses if name.endswith(NO_BIAS)}
        gone |= {name for name in zeros if not self._foreign(name)}
        drop_initializers(self.model.graph, gone)
        nodes = {self.model.index.constants[name] for name in gone & self.model.index.constants.keys()}
        nodes |= {i for i in self.positions if self.model.graph.node[i].domain == DOMAIN}
        for position in sorted(nodes, reverse=True):
            del self.model.graph.node[position]
            for node in reversed(self.instead.get(position, [])):
                self.model.graph.node.insert(position, node)
