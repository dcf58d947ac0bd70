"""Attributes of a node as keyword arguments of its function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import AttributeProto

from onnxprune.finetune.dtypes import DTYPE_ATTRIBUTES, sparse_tensor, torch_dtype, torch_tensor, widened
from onnxprune.finetune.registry import Unsupported


def resolved(
    attributes: Iterable[AttributeProto], given: Mapping[str, AttributeProto]
) -> list[AttributeProto]:
    """Replace references to attributes of the function around the node by what the function was given.

    An attribute that refers to one that was not given is left out, as the specification says.
    """
    found = []
    for attribute in attributes:
        if not attribute.ref_attr_name:
            found.append(attribute)
        elif attribute.ref_attr_name in given:
            copy = AttributeProto()
            copy.CopyFrom(given[attribute.ref_attr_name])
            copy.name = attribute.name
            found.append(copy)
    return found


def value_of(attribute: AttributeProto, *, widen: bool) -> Any:
    """Return the Python value of an attribute that is not a graph.

    Raises:
        Unsupported: for kinds that no operator of ours takes.
    """
    kind = attribute.type
    if kind == AttributeProto.TENSOR:
        return torch_tensor(attribute.t, widen=widen)
    if kind == AttributeProto.SPARSE_TENSOR:
        return sparse_tensor(attribute.sparse_tensor, widen=widen)
    if kind in (AttributeProto.GRAPHS, AttributeProto.SPARSE_TENSORS, AttributeProto.TENSORS):
        raise Unsupported(f"attribute {attribute.name!r} is a list of graphs or tensors")
    value = onnx.helper.get_attribute_value(attribute)
    if kind == AttributeProto.STRING:
        return value.decode("utf-8", "replace")
    if kind == AttributeProto.STRINGS:
        return tuple(item.decode("utf-8", "replace") for item in value)
    if kind in (AttributeProto.INTS, AttributeProto.FLOATS):
        return tuple(value)
    if kind == AttributeProto.INT and attribute.name in DTYPE_ATTRIBUTES:
        value = widened(value) if widen else value
        if value:  # zero: not given
            torch_dtype(value)
    return value
