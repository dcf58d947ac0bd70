"""What a model holds of our domain: recognise it, refuse what is not ours, write the functions, drop them."""

from __future__ import annotations

import onnx
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.model import Model, label
from onnxprune.storage import FORMS
from onnxprune.storage.device import functions as device
from onnxprune.storage.device.layout import MIN_OPSET
from onnxprune.storage.form import DOMAIN, VERSION, Form
from onnxprune.storage.functions import make_function, parse_op
from onnxprune.storage.sparse_functions import SparseOp, make_sparse_function, parse

BY_PREFIX: dict[str, Form] = {form.prefix: form for form in FORMS.values()}


def check_domain(proto: onnx.ModelProto, name: str) -> None:
    """Make sure that what the model has of domain ``onnxprune`` is ours and not newer than we are.

    Raises:
        ModelError: for another version of the domain, or a function that onnxprune does not write.
    """
    for entry in proto.opset_import:
        if entry.domain == DOMAIN and entry.version != VERSION:
            raise ModelError(
                f"{name}: packed with version {entry.version} of domain {DOMAIN}, this is version {VERSION}",
                "use the version of onnxprune that wrote it, or a newer one",
            )
    for function in proto.functions:
        if function.domain == DOMAIN:
            opset = next((o.version for o in function.opset_import if not o.domain), 0)
            ours = _function(function.name, opset, cast=False)
            if list(function.input) != list(ours.input) or len(function.output) != 1:
                raise ModelError(
                    f"{name}: function {DOMAIN}.{function.name} is not one that onnxprune writes"
                )


def _function(op_type: str, opset: int, *, cast: bool) -> onnx.FunctionProto:
    for_cuda = device.parse(op_type)
    if for_cuda is not None:
        return for_cuda.function(max(MIN_OPSET, opset))
    op = parse(op_type, BY_PREFIX)
    if op is not None:
        return make_sparse_function(op, BY_PREFIX.get(op.prefix), opset, cast=cast)
    form, suffix = parse_op(op_type, FORMS)
    return make_function(form, suffix, max(form.min_opset, opset), cast=cast)


def write_functions(model: Model) -> None:
    """Write the functions and the opset import that the nodes of our domain need, and no others."""
    drop_functions(model.proto)
    casts: dict[str, bool] = {}  # op -> whether the values of one of its nodes need a cast
    for node in model.graph.node:
        if node.domain == DOMAIN:
            casts[node.op_type] = casts.get(node.op_type, False) or _casts(model, node)
    if not casts:
        return
    for op_type in sorted(casts):
        model.proto.functions.append(_function(op_type, model.opset, cast=casts[op_type]))
    model.proto.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def _casts(model: Model, node: onnx.NodeProto) -> bool:
    if device.device_op(node) is not None:
        return False
    names = packed_inputs(node)
    values = model.index.tensors.get(names[-1]) if names else None
    wanted = next((a.i for a in node.attribute if a.name == "dtype"), 0)
    return values is not None and values.data_type != wanted


def drop_functions(proto: onnx.ModelProto) -> None:
    """Remove the functions and the opset import of our domain."""
    for field in (proto.functions, proto.opset_import):
        for position in range(len(field) - 1, -1, -1):
            if field[position].domain == DOMAIN:
                del field[position]


def sparse_op(node: onnx.NodeProto) -> SparseOp | None:
    """Return which op with a kernel one of our nodes is, None when it is another one."""
    return parse(node.op_type, BY_PREFIX) if node.domain == DOMAIN else None


def form_of(node: onnx.NodeProto) -> tuple[Form | None, str]:
    """Return the storage form of one of our nodes, and the suffix of its op if it has no kernel.

    The form is None when the weight is dense (``DirectConv``), or in a layout for CUDA.

    Raises:
        ModelError: when the op is none of ours.
    """
    op = sparse_op(node)
    if device.device_op(node) is not None:
        return None, ""
    return (BY_PREFIX.get(op.prefix), "") if op is not None else parse_op(node.op_type, FORMS)


def packed_inputs(node: onnx.NodeProto) -> list[str]:
    """Return the names of the packed tensors among the inputs of one of our nodes.

    Raises:
        ModelError: when the op is none of ours, or the node has too few inputs.
    """
    op = sparse_op(node)
    form, suffix = form_of(node)
    for_cuda = device.device_op(node)
    if for_cuda is not None:
        if len(node.input) != len(for_cuda.inputs) + 2 or not all(node.input):
            raise _wrong_inputs(node, str(len(for_cuda.inputs) + 2))
        return list(node.input)[1:-1]
    if op is not None:
        wanted = 1 + (len(form.inputs) if form else 1) + len(op.tail_inputs())
        if len(node.input) != wanted or not all(node.input):
            raise _wrong_inputs(node, str(wanted))
    if form is None:
        return []
    first = 0 if suffix in form.decoders else 1
    names = list(node.input)[first : first + len(form.inputs)]
    if len(names) != len(form.inputs) or not all(names):
        raise _wrong_inputs(node, "more")
    return names


def _wrong_inputs(node: onnx.NodeProto, wanted: str) -> ModelError:
    return ModelError(
        f"node {label(node)!r} ({DOMAIN}.{node.op_type}) has {len(node.input)} inputs, wanted {wanted}"
    )
