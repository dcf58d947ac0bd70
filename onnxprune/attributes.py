"""Attributes of nodes, with their defaults."""

from __future__ import annotations

from collections.abc import Sequence

import onnx


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """Return the value of attribute ``name`` of ``node``, or ``default``."""
    for item in node.attribute:
        if item.name == name:
            value = onnx.helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def ints(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return a list of integers."""
    value = attribute(node, name)
    return tuple(int(item) for item in value) if isinstance(value, Sequence) else default


def number(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a number."""
    value = attribute(node, name, default)
    return float(value) if isinstance(value, int | float) else default
