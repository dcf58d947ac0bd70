"""Store weights in a packed form; the file stays one that stock ONNX Runtime runs.

Matches: the named weights (initializers or outputs of ``Constant`` nodes), where the packed form is smaller.
Changes: a MatMul, Gemm or Conv that is the only user of its weight becomes one op of domain
``onnxprune`` (same name, outputs, other inputs, attributes, metadata) with the packed tensors as
inputs; the values keep the weight's name. Any other weight (tied, embedding table, ConvTranspose, read
by a subgraph, ...) is made by one ``Decode`` node under its old name, so its users stay untouched.
Adds the functions of these ops, the opset import ``onnxprune`` 1 and, if older, IR version 8.
Guarantees: ONNX Runtime folds the decoding at load, so it runs the dense model's graph with the
same weights bit for bit (-0.0 becomes 0.0). :mod:`onnxprune.passes.unpack` is the inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.model import Model
from onnxprune.parallel import map_threads
from onnxprune.storage import FORMS
from onnxprune.storage.body import INTEGER_CONSTANT_OPSET
from onnxprune.storage.choose import Candidate, choose
from onnxprune.storage.domain import check_domain, write_functions
from onnxprune.storage.edit import (
    Names,
    constant_node,
    drop_value_info,
    fill,
    is_overridable,
    raise_ir_version,
)
from onnxprune.storage.form import DOMAIN, MIN_IR_VERSION, Form, Packed, np_dtype
from onnxprune.storage.functions import (
    Consumer,
    consumer_of,
    operands,
    set_attributes,
    stored_bytes,
)
from onnxprune.storage.report import PackReport, StoredWeight

__all__ = ["PackReport", "StoredWeight", "pack"]

# What a packed weight takes in the file besides its data: a second name, shapes, attributes.
OVERHEAD_BYTES = 256


def pack(
    model: Model, weights: Sequence[str], *, values: str = "same", form: str | None = None
) -> PackReport:
    """Pack ``weights`` of ``model`` in place.

    Args:
        model: our own copy; a model that is partly packed already is fine.
        weights: names of initializers or outputs of ``Constant`` nodes.
        values: ``same``, or ``fp16`` to round float32 and float64 values (not where one would overflow).
        form: a key of ``onnxprune.storage.FORMS``; None lets :func:`onnxprune.storage.choose.choose` find
            one for each weight.

    Returns:
        One entry per weight; those that stay dense say why.

    Raises:
        ModelError: when a weight does not exist, or the model holds ops of our domain that are not ours.
    """
    packer = _Packer(model, [FORMS[form]] if form else list(FORMS.values()), values)
    entries = packer.store(list(dict.fromkeys(weights)))
    packer.finish()
    return PackReport(entries)


class _Packer:
    """State of one call: what is inserted and removed once all weights are known."""

    def __init__(self, model: Model, forms: list[Form], values: str) -> None:
        check_domain(model.proto, model.name)
        self.model, self.forms, self.values = model, forms, values
        self.names = Names(model)
        self.fused: set[int] = set()  # nodes that took a packed weight
        self.added: list[tuple[int, list[onnx.NodeProto]]] = []  # (position, nodes to put before it)
        self.stale: set[str] = set()  # values whose type information no longer holds

    def store(self, names: list[str]) -> tuple[StoredWeight, ...]:
        """Pack the weights, or say why not.

        Each is encoded twice, to compare and to store: all forms of all weights would fill the memory.
        """
        reasons: dict[str, str] = {}
        candidates: dict[str, Candidate] = {}
        for name, found in zip(names, map_threads(self._compare, names), strict=True):
            if isinstance(found, str):
                reasons[name] = found
            else:
                candidates[name] = found
        chosen = choose(candidates, {form.name: form.load_ns for form in self.forms})
        return tuple(
            self._keep(name, reasons[name]) if name in reasons else self._pack(name, FORMS[chosen[name]])
            for name in names
        )

    def _compare(self, name: str) -> Candidate | str:
        """Return what each form makes of a weight, or why none does."""
        tensor = self.model.index.tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.model.name}: no weight named {name!r}")
        if is_overridable(self.model, name):
            return "callers can override it: it is also a graph input"
        if name not in self.model.index.uses and name not in self.model.index.outputs:
            return "nothing uses it"
        if any(
            self.model.graph.node[use.index].domain == DOMAIN for use in self.model.index.uses.get(name, [])
        ):
            return "packed already"
        refusals = {form.name: self._refusal(form, tensor) for form in self.forms}
        if all(refusals.values()):
            return refusals[self.forms[-1].name]
        array = self.model.array(name)
        sizes = {
            form.name: stored_bytes(form, form.encode(array, values=self.values), self.model.opset)
            for form in self.forms
            if not refusals[form.name]
        }
        smaller = {form: size for form, size in sizes.items() if size + OVERHEAD_BYTES < array.nbytes}
        if not smaller:
            return f"packed it would take {min(sizes.values()) + OVERHEAD_BYTES} of {array.nbytes} bytes"
        return Candidate(array.size, smaller)

    def _refusal(self, form: Form, tensor: onnx.TensorProto) -> str:
        if self.model.opset < form.min_opset:
            return f"opset {self.model.opset} has no op to decode it, opset {form.min_opset} is the first"
        return form.refusal(tensor.dims, tensor.data_type)

    def _keep(self, name: str, reason: str) -> StoredWeight:
        size = self.model.array(name).nbytes
        return StoredWeight(name, "dense", size, size, reason)

    def _pack(self, name: str, form: Form) -> StoredWeight:
        array = self.model.array(name)
        packed = form.encode(array, values=self.values)
        self._apply(name, form, packed)
        size = stored_bytes(form, packed, self.model.opset)
        return StoredWeight(name, "packed", array.nbytes, size, self._note(packed))

    def _note(self, packed: Packed) -> str:
        wide = np_dtype(packed.data_type).itemsize > 2
        if self.values == "fp16" and wide and not packed.cast:
            return "values kept: float16 cannot hold the largest"
        return ""

    def _apply(self, name: str, form: Form, packed: Packed) -> None:
        consumer = self._consumer(name, form, packed)
        self.stale.add(name)
        if consumer is None:
            self._decode(name, form, packed)
        else:
            self._fuse(name, form, packed, consumer)

    def _consumer(self, name: str, form: Form, packed: Packed) -> Consumer | None:
        """The fused op for the only use of the weight, if there is one."""
        uses = self.model.index.uses.get(name, [])
        if len(uses) != 1 or name in self.model.index.outputs or not form.fits_fused(packed.shape):
            return None
        node = self.model.graph.node[uses[0].index]
        return None if uses[0].index in self.fused else consumer_of(node, uses[0].slot)

    def _fuse(self, name: str, form: Form, packed: Packed, consumer: Consumer) -> None:
        index = self.model.index.uses[name][0].index
        node = self.model.graph.node[index]
        inputs = self._replace(name, name, form, packed)
        others = [value for slot, value in enumerate(operands(node)) if slot != consumer.slot]
        self.fused.add(index)
        self._label(node, consumer.suffix, form, packed)
        node.ClearField("input")
        node.input.extend([others[0], *inputs, *others[1:]])

    def _decode(self, name: str, form: Form, packed: Packed) -> None:
        inputs = self._replace(name, self.names.fresh(f"{name}_{form.inputs[-1]}"), form, packed)
        node = helper.make_node("", inputs, [name], name=f"decode_{name}")
        self._label(node, form.decode_op(packed.shape), form, packed)
        home = self.model.index.constants.get(name)
        self.added.append((0 if home is None else home + 1, [node]))

    def _label(self, node: onnx.NodeProto, suffix: str, form: Form, packed: Packed) -> None:
        """Make ``node`` the op of the form with the given suffix."""
        node.domain, node.op_type = DOMAIN, form.prefix + suffix
        set_attributes(node, form, packed, self.model.opset)

    def _replace(self, name: str, values_name: str, form: Form, packed: Packed) -> list[str]:
        """Put the packed tensors where the weight was; return their names in input order.

        The values take the weight's own tensor, so its doc string stays.
        """
        names = [self.names.fresh(f"{name}_{role}") for role in form.inputs[:-1]] + [values_name]
        tensors = [numpy_helper.from_array(a, n) for a, n in zip(packed.tensors, names, strict=True)]
        old, home = self.model.index.tensors[name], self.model.index.constants.get(name)
        fill(old, tensors[-1])
        if home is None:
            old.name = values_name
        else:
            self.model.graph.node[home].output[0] = values_name
        if home is None or self.model.opset < INTEGER_CONSTANT_OPSET:
            self.model.graph.initializer.extend(tensors[:-1])
        else:
            self.added.append((home, [constant_node(t, t.name) for t in tensors[:-1]]))
        return names

    def finish(self) -> None:
        """Insert the new nodes, write the functions, raise the versions."""
        if not self.stale:
            return
        graph = self.model.graph
        for position, nodes in sorted(self.added, key=lambda item: item[0], reverse=True):
            for node in reversed(nodes):
                graph.node.insert(position, node)
        drop_value_info(graph, self.stale)
        raise_ir_version(self.model, MIN_IR_VERSION, self.stale)
        self.model.reindex()
        write_functions(self.model)
