"""A whole transformer for gpu_check: the architecture of all-MiniLM-L6, in float16, with random weights.

Speed depends on shapes and zeros, not on what was learnt, so no file has to be there.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.kernels.tune import random_weight
from onnxprune.model import Model
from onnxprune.storage.device import LAYOUTS

LAYERS, WIDTH, INNER, HEADS, WORDS = 6, 384, 1536, 12, 30522
_OPSET = 20  # has Gelu


class _Builder:
    """Nodes and constants; weights have the zeros that a layout can use."""

    def __init__(self, layout: str, density: float) -> None:
        self.layout, self.density = LAYOUTS[layout], density
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, values: object, dtype: type = np.float16) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], f"{op}{len(self.nodes)}", **attributes)
        )
        return output

    def linear(self, x: str, cols: int, rows: int) -> str:
        weight = random_weight(self.layout, (rows, cols), self.density, len(self.tensors)).astype(np.float32)
        weight /= np.sqrt(cols * np.count_nonzero(weight) / weight.size / 3)  # uniform: a variance of 1/3
        bias = self.constant(self.random.standard_normal(rows) * 0.1)
        return self.node("Add", self.node("MatMul", x, self.constant(weight.T)), bias)

    def norm(self, x: str) -> str:
        return self.node(
            "LayerNormalization", x, self.constant(np.ones(WIDTH)), self.constant(np.zeros(WIDTH))
        )

    def heads(self, x: str, batch: int, tokens: int, perm: list[int]) -> str:
        shape = self.constant([batch, tokens, HEADS, WIDTH // HEADS], np.int64)
        return self.node("Transpose", self.node("Reshape", x, shape), perm=perm)

    def attention(self, x: str, batch: int, tokens: int) -> str:
        perms = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        q, k, v = (self.heads(self.linear(x, WIDTH, WIDTH), batch, tokens, perm) for perm in perms)
        scores = self.node("Mul", self.node("MatMul", q, k), self.constant((WIDTH // HEADS) ** -0.5))
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), v)
        shape = self.constant([batch, tokens, WIDTH], np.int64)
        joined = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), shape)
        return self.linear(joined, WIDTH, WIDTH)


def minilm(layout: str, density: float, batch: int, tokens: int, layers: int = LAYERS) -> Model:
    """Return the model: ids (batch, tokens) -> mean of the last layer's tokens (batch, 384)."""
    b = _Builder(layout, density)
    x = b.node("Gather", b.constant(b.random.standard_normal((WORDS, WIDTH))), "x")
    x = b.norm(b.node("Add", x, b.constant(b.random.standard_normal((tokens, WIDTH)) * 0.1)))
    for _ in range(layers):
        x = b.norm(b.node("Add", x, b.attention(x, batch, tokens)))
        inner = b.node("Gelu", b.linear(x, WIDTH, INNER))
        x = b.norm(b.node("Add", x, b.linear(inner, INNER, WIDTH)))
    y = b.node("ReduceMean", x, b.constant([1], np.int64), keepdims=0)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        b.nodes,
        "minilm",
        [value("x", TensorProto.INT64, [batch, tokens])],
        [value(y, TensorProto.FLOAT16, [batch, WIDTH])],
        b.tensors,
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9))
