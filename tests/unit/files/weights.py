"""A model whose weights lie in every place that a file has for them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def large(size: int = 64) -> onnx.ModelProto:
    """A weight over 1 MiB, one over 1 KiB, a small one, one in a subgraph and one in a Constant."""
    rng = np.random.default_rng(0)
    names = {"w": (1024, 4 * size), "v": (4 * size, size), "b": (size,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in names.items()}
    branch = helper.make_graph(
        [helper.make_node("Mul", ["t", "inner"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", size])],
        [
            numpy_helper.from_array(np.arange(size, dtype=np.float32), "inner"),
            numpy_helper.from_array(np.ones((size, size), np.float32), "unused"),
        ],
    )
    constant = numpy_helper.from_array(np.full((size, size), 0.5, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["k"], value=constant),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["h2"]),
        helper.make_node("MatMul", ["h2", "k"], ["h3"]),
        helper.make_node("Add", ["h3", "b"], ["t"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", size])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()]
        + [numpy_helper.from_array(np.array(True), "yes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
