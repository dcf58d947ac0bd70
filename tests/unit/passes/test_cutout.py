from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser

from onnxprune import runtime
from onnxprune.model import Model
from onnxprune.passes.cutout import cut_out
from onnxprune.passes.pack import pack
from onnxprune.passes.shapes import Shapes, infer, observe
from onnxprune.passes.sparse_ops import find_chains, rewrite


def test_the_decoder_of_a_weight_that_others_read_comes_along(pruned: Callable[..., Any]) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 24] x) => (float[N, 24] y) {
        a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, w)  y = Neg(c) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(pruned(24, 24), "w"))
    model, feed = Model(proto), {"b": np.random.default_rng(0).standard_normal((2, 24), np.float32)}
    shapes = Shapes(infer(model))
    weight = model.array("w")
    pack(model, ["w"])
    options, _ = find_chains(model, shapes)
    small = cut_out(model, options[1][-1], {"b": (2, 24)})
    assert [n.op_type for n in small.graph.node] == ["Gap4Decode", "MatMul"]
    (found,) = runtime.session(small.proto, kernels=False).run(None, feed)
    assert np.allclose(found, feed["b"] @ weight, atol=1e-5)
    (again,), _ = find_chains(small, shapes)
    assert [c.op_type for c in again] == [c.op_type for c in options[1]]
    rewrite(small, [again[-1]], shapes)
    assert [n.op_type for n in small.graph.node] == ["SparseGap4MatMul"]


def test_a_chain_alone_computes_what_it_does_in_the_model(pruned: Callable[..., Any]) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 8, 9, 9] x) => (float[N, 8, 9, 9] y) {
        a = Relu(x)  one = Cast <to = 7> (raw)  p = Pad(a, one)
        c = Conv(p, w, b)  s = Add(c, a)  r = Relu(s)  y = Neg(r) }"""
    proto = onnx.parser.parse_model(text)
    weights = {
        "w": pruned(8, 8, 3, 3),
        "b": np.ones(8, np.float32),
        "raw": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.float32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    model, feed = Model(proto), {"x": np.random.default_rng(0).standard_normal((2, 8, 9, 9), np.float32)}
    shapes = Shapes(infer(model), observe(model, ["a", "r"], [feed]))
    pack(model, ["w"])
    (options,), _ = find_chains(model, shapes)
    small = cut_out(model, options[-1], {"a": (2, 8, 9, 9)})
    assert list(small.index.inputs) == ["a"] and list(small.index.outputs) == ["r"]
    assert [n.op_type for n in small.graph.node] == ["Pad", "Gap4ConvBias", "Add", "Relu"]
    values = {"a": np.maximum(feed["x"], 0)}
    (found,) = runtime.session(small.proto, kernels=False).run(None, values)
    (whole,) = runtime.session(model.proto, kernels=False).run(None, feed)
    assert np.allclose(found, -whole, atol=1e-5)
    # The same ways lead out of it
    (again,), _ = find_chains(small, shapes)
    assert [c.op_type for c in again] == [c.op_type for c in options]
    rewrite(small, [again[-1]], shapes)
    assert [n.op_type for n in small.graph.node] == ["SparseGap4ConvAddRelu"]
