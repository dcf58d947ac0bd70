"""Standard nodes for one op with a kernel: what :mod:`onnxprune.passes.unpack` puts in its place.

They are those of the function's body behind the decoding, with the node's own names and attributes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.storage.device.functions import DeviceOp
from onnxprune.storage.edit import Names
from onnxprune.storage.sparse_functions import SparseOp, tail

# How the pass names the zeros that stand for a bias the model does not have.
NO_BIAS = "_no_bias"


def expand(node: onnx.NodeProto, op: SparseOp, weight: str, opset: int, names: Names) -> list[onnx.NodeProto]:
    """Return standard nodes that make the output of ``node`` from its inputs and a dense weight.

    Args:
        node: of our domain, with all its inputs.
        op: what it is.
        weight: name of the dense weight.
        opset: version of the default domain.
        names: of the model, to find new ones.
    """
    given = {attribute.name: attribute for attribute in node.attribute}
    inputs = op.tail_inputs()
    rename = dict(zip(inputs, list(node.input)[-len(inputs) :], strict=True))
    body = tail(op, opset, bias=not rename["B"].endswith(NO_BIAS))
    rename |= {"X": node.input[0], "W": weight, "Y": node.output[0]}
    for inner in body:
        for output in inner.output:
            if output not in rename:
                rename[output] = names.fresh(f"{node.output[0]}_{inner.op_type.lower()}")
    product = next(inner for inner in body if inner.op_type == op.consumer)
    for inner in body:
        _fill(inner, given, rename)
        # Values have names of their own, so the nodes that make them can have the same.
        inner.name = node.name if inner is product else inner.output[0]
    product.doc_string = node.doc_string
    product.metadata_props.extend(node.metadata_props)
    return body


def expand_device(
    node: onnx.NodeProto, op: DeviceOp, weight: str, opset: int, names: Names
) -> list[onnx.NodeProto]:
    """Return standard nodes for an op with a CUDA kernel; ``weight`` names the dense one as it was stored."""
    given = {attribute.name: attribute for attribute in node.attribute}
    trans = bool("trans" in given and given["trans"].i)
    body = op.tail(opset, bias=not node.input[-1].endswith(NO_BIAS), trans=trans)
    rename = {"X": node.input[0], "W": weight, "B": node.input[-1], "Y": node.output[0]}
    for inner in body:
        for output in inner.output:
            if output not in rename:
                rename[output] = names.fresh(f"{node.output[0]}_{inner.op_type.lower()}")
    for inner in body:
        _fill(inner, given, rename)
        inner.name = inner.output[0]
    body[0].name, body[0].doc_string = node.name, node.doc_string
    body[0].metadata_props.extend(node.metadata_props)
    return body


def _fill(inner: onnx.NodeProto, given: dict[str, onnx.AttributeProto], rename: dict[str, str]) -> None:
    """Give a node of a body the values and attributes of the node that calls it."""
    for names in (inner.input, inner.output):
        for slot, name in enumerate(names):
            names[slot] = rename[name]
    for position in range(len(inner.attribute) - 1, -1, -1):
        attribute = inner.attribute[position]
        if attribute.ref_attr_name:
            value = given.get(attribute.ref_attr_name)
            if value is None:  # the standard op's default
                del inner.attribute[position]
            elif (
                value.type == onnx.AttributeProto.FLOAT and inner.op_type == "Constant"
            ):  # in the form that every reader of a model knows
                tensor = numpy_helper.from_array(np.array(value.f, np.float32))
                attribute.CopyFrom(helper.make_attribute("value", tensor))
            else:
                name = attribute.name
                attribute.CopyFrom(value)
                attribute.name = name
