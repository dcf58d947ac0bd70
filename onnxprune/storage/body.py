"""What the bodies of functions are written with: constants and references to the function's attributes.

Before opset 9 a ``Constant`` holds floating point only. Integers are then written as floating point numbers
that are exact for them, with a ``Cast`` behind them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import AttributeProto, helper, numpy_helper

INTEGER_CONSTANT_OPSET = 9


def constant(
    name: str, array: NDArray[Any], opset: int, dtype: DTypeLike | None = None
) -> list[onnx.NodeProto]:
    """Return nodes that make ``array`` under ``name``.

    Args:
        name: of the value.
        array: integers below 2^53, or floating point.
        opset: version of the default domain.
        dtype: of the value; default that of ``array``.
    """
    stored = tensor(array, opset)
    wanted = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or array.dtype))
    if stored.data_type == wanted:
        return [helper.make_node("Constant", [], [name], value=stored)]
    made = f"value_of_{name}"
    return [
        helper.make_node("Constant", [], [made], value=stored),
        helper.make_node("Cast", [made], [name], to=wanted),
    ]


def given_tensor(attribute: str, name: str, dtype: DTypeLike, opset: int) -> list[onnx.NodeProto]:
    """Return nodes that make the function's attribute, a :func:`tensor` of ``dtype``, under ``name``."""
    stored, wanted = tensor(np.zeros(1, dtype), opset), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    made = name if stored.data_type == wanted else f"value_of_{name}"
    nodes = [given("Constant", [], made, value=(attribute, AttributeProto.TENSOR))]
    return nodes if made == name else [*nodes, helper.make_node("Cast", [made], [name], to=wanted)]


def tensor(array: NDArray[Any], opset: int) -> onnx.TensorProto:
    """Return ``array`` (integers below 2^53, or floating point) as a ``Constant`` of this opset holds it."""
    if opset < INTEGER_CONSTANT_OPSET and np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.float16 if array.dtype.itemsize == 1 else np.float64)
    return numpy_helper.from_array(array)


def given(op_type: str, inputs: list[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node some of whose attributes are those of its function.

    Args:
        op_type: of the default domain.
        inputs: names.
        outputs: names.
        attributes: values; a pair is the name of the function's attribute and its type.
    """
    own = {name: value for name, value in attributes.items() if not isinstance(value, tuple)}
    node: onnx.NodeProto = helper.make_node(op_type, inputs, list(outputs), **own)
    for name, value in attributes.items():
        if isinstance(value, tuple):
            node.attribute.add(name=name, ref_attr_name=value[0], type=value[1])
    return node
