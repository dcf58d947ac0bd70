"""Store weights as ONNX sparse tensors (COO): part of the standard, rarely smaller.

Matches: the named weights. Changes: an initializer moves to ``graph.sparse_initializer``, a ``Constant``
node gets ``sparse_value`` instead of ``value``; names and users stay. Guarantees: ``onnx.checker`` accepts it
(its ``full_check`` does not: shape inference gives a sparse initializer a sparse type, which no op takes) and
ONNX Runtime, which builds the dense tensors at load whatever op reads them, computes the same outputs.
Weights that turn out larger than dense are stored all the same, for that was asked for, and the report
says so.
:mod:`onnxprune.passes.unpack` is the inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.files.tensors import type_name
from onnxprune.model import Model
from onnxprune.storage import coo
from onnxprune.storage.edit import drop_initializers, is_overridable, raise_ir_version
from onnxprune.storage.report import PackReport, StoredWeight

_MIN_IR_VERSION = 5  # SparseTensorProto
_MIN_OPSET = 11  # Constant.sparse_value
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def to_sparse_initializers(model: Model, weights: Sequence[str]) -> PackReport:
    """Store ``weights`` of ``model`` as sparse tensors, in place.

    Args:
        model: our own copy.
        weights: names of initializers or outputs of ``Constant`` nodes.

    Returns:
        One entry per weight; those that stay dense and those that grew say why.

    Raises:
        ModelError: when a weight does not exist.
    """
    entries = []
    moved: set[str] = set()
    for name in dict.fromkeys(weights):
        tensor = model.index.tensors.get(name)
        if tensor is None:
            raise ModelError(f"{model.name}: no weight named {name!r}")
        array = model.array(name)
        reason = _refusal(model, name, tensor)
        if reason:
            entries.append(StoredWeight(name, "dense", array.nbytes, array.nbytes, reason))
            continue
        sparse = coo.encode(array, name)
        _replace(model, name, sparse)
        moved.add(name)
        stored = coo.nbytes(sparse)
        note = "larger than dense: 8 bytes of index per nonzero" if stored > array.nbytes else ""
        entries.append(StoredWeight(name, "sparse-initializer", array.nbytes, stored, note))
    if moved:
        raise_ir_version(model, _MIN_IR_VERSION, moved)
        drop_initializers(model.graph, moved)
        model.reindex()
    return PackReport(tuple(entries))


def _refusal(model: Model, name: str, tensor: onnx.TensorProto) -> str:
    if tensor.data_type not in _FLOATS:
        return f"holds {type_name(tensor.data_type)}, sparse storage is for floating point"
    if not tensor.dims:
        return "a scalar has no sparse form"
    if name in model.index.constants and model.opset < _MIN_OPSET:
        return f"a Constant node of opset {model.opset} cannot be sparse, opset {_MIN_OPSET} is the first"
    if is_overridable(model, name):
        return "callers can override it: it is also a graph input"
    return ""


def _replace(model: Model, name: str, sparse: onnx.SparseTensorProto) -> None:
    home = model.index.constants.get(name)
    if home is None:
        model.graph.sparse_initializer.append(sparse)
        return
    node = model.graph.node[home]
    sparse.values.name = ""
    for attribute in node.attribute:
        if attribute.name == "value":
            attribute.CopyFrom(helper.make_attribute("sparse_value", sparse))
