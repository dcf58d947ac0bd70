"""What a model holds of our domain: recognise it, refuse what is not ours, take it away."""

from __future__ import annotations

import onnx

from onnxprune.errors import ModelError
from onnxprune.storage import FORMS
from onnxprune.storage.form import DOMAIN, VERSION, Form
from onnxprune.storage.functions import make_function, parse_op


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
            form, suffix = parse_op(function.name, FORMS)
            opset = max(form.min_opset, next((o.version for o in function.opset_import if not o.domain), 0))
            ours = make_function(form, suffix, opset, cast=False)
            if list(function.input) != list(ours.input) or len(function.output) != 1:
                raise ModelError(
                    f"{name}: function {DOMAIN}.{function.name} is not one that onnxprune writes"
                )


def drop_functions(proto: onnx.ModelProto) -> None:
    """Remove the functions and the opset import of our domain."""
    for field in (proto.functions, proto.opset_import):
        for position in range(len(field) - 1, -1, -1):
            if field[position].domain == DOMAIN:
                del field[position]


def form_of(node: onnx.NodeProto) -> tuple[Form, str]:
    """Return the storage form of one of our nodes, and the suffix of its op.

    Raises:
        ModelError: when the op is none of ours.
    """
    return parse_op(node.op_type, FORMS)


def packed_inputs(node: onnx.NodeProto) -> list[str]:
    """Return the names of the packed tensors among the inputs of one of our nodes.

    Raises:
        ModelError: when the op is none of ours, or the node has too few inputs.
    """
    form, suffix = form_of(node)
    first = 0 if suffix in form.decoders else 1
    names = list(node.input)[first : first + len(form.inputs)]
    if len(names) != len(form.inputs) or not all(names):
        raise ModelError(
            f"node {node.name!r} ({DOMAIN}.{node.op_type}) has {len(node.input)} inputs, wanted more"
        )
    return names
