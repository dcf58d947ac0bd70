from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune.model import Model
from onnxprune.passes.chains import Chain, chains
from onnxprune.passes.pack import pack
from onnxprune.passes.products import find_products
from onnxprune.passes.shapes import Shapes, infer

TOKENS = "g (float[N, S, 24] x, float[N, S, 32] r, float[N, 1, 32] wide, float[7, N, S, 32] deep) => ({}) "
IMAGE = "g (float[N, 8, 9, 9] x, float[N, 16, 7, 7] r) => ({}) "
VECTOR = np.linspace(-1, 1, 32, dtype=np.float32)
CONSTANTS: dict[str, Any] = {
    "b": VECTOR, "flat": VECTOR.reshape(1, 1, 32), "deeper": VECTOR.reshape(1, 1, 1, 32),
    "scalar": np.array(1, np.float32), "gamma": VECTOR + 2, "beta": VECTOR, "six": np.array(6, np.float32),
    "zero": np.array(0, np.float32), "short": np.ones((4, 32), np.float32),
    "cb": VECTOR[:16], "channel": VECTOR[:16].reshape(1, 16, 1, 1), "row": VECTOR[:7].reshape(7),
}  # fmt: skip


def all_chains(pruned: Any, text: str, weight: tuple[int, ...] = (24, 32), opset: int = 17) -> list[Chain]:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    used = {name for node in proto.graph.node for name in node.input}
    arrays = {"w": pruned(*weight), **CONSTANTS}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in used)
    model = Model(proto)
    shapes = Shapes(infer(model))
    pack(model, ["w"], form="gaps4")
    (product,) = [p for p in find_products(model, shapes).products if p.weight == "w"]
    return chains(model, product, shapes)


def names(found: list[Chain]) -> list[str]:
    return [chain.op_type.removeprefix("SparseGap4") for chain in found]


MATMUL = {
    "alone": ("y = MatMul(x, w)", "float y", ["MatMul"]),
    "bias": ("m = MatMul(x, w) y = Add(b, m)", "float y", ["MatMul"]),
    "bias with axes": ("m = MatMul(x, w) y = Add(m, flat)", "float y", ["MatMul"]),
    "residual": ("m = MatMul(x, w) h = Add(m, b) y = Add(r, h)", "float y", ["MatMul", "MatMulAdd"]),
    "residual only": ("m = MatMul(x, w) y = Add(m, r)", "float y", ["MatMul", "MatMulAdd"]),
    "activation": ("m = MatMul(x, w) h = Add(m, b) y = Relu(h)", "float y", ["MatMul", "MatMulRelu"]),
    "both": (
        "m = MatMul(x, w) h = Add(m, r) s = Sigmoid(h) y = Mul(h, s)",
        "float y",
        ["MatMul", "MatMulAdd", "MatMulAddSilu"],
    ),
    "norm": (
        "m = MatMul(x, w) h = Add(m, b) s = Add(h, r) y = LayerNormalization(s, gamma, beta)",
        "float y",
        ["MatMul", "MatMulAdd", "MatMulAddNorm"],
    ),
    "norm without residual": (
        "m = MatMul(x, w) y = LayerNormalization(m, gamma, beta)",
        "float y",
        ["MatMul", "MatMulNorm"],
    ),
    "no norm behind an activation": (
        "m = MatMul(x, w) h = Relu(m) y = LayerNormalization(h, gamma, beta)",
        "float y",
        ["MatMul", "MatMulRelu"],
    ),
    "sum is used again": (
        "m = MatMul(x, w) s = Add(m, r) n = LayerNormalization(s, gamma, beta) y = Add(s, n)",
        "float y",
        ["MatMul", "MatMulAdd"],
    ),
    "product is an output": ("m = MatMul(x, w) y = Relu(m)", "float y, float m", ["MatMul"]),
    "biased value is an output": (
        "m = MatMul(x, w) h = Add(m, b) y = Relu(h)",
        "float y, float h",
        ["MatMul"],
    ),
    "product is read twice": ("m = MatMul(x, w) h = Relu(m) y = Add(m, h)", "float y", ["MatMul"]),
    "itself twice": ("m = MatMul(x, w) y = Add(m, m)", "float y", ["MatMul"]),
    "broadcast": ("m = MatMul(x, w) y = Add(m, wide)", "float y", ["MatMul"]),
    "more axes": ("m = MatMul(x, w) y = Add(m, deep)", "float y", ["MatMul"]),
    "after an activation": (
        "m = MatMul(x, w) h = Relu(m) y = Add(h, r)",
        "float y",
        ["MatMul", "MatMulRelu"],
    ),
}


@pytest.mark.parametrize(("body", "outputs", "wanted"), MATMUL.values(), ids=MATMUL)
def test_matmul(pruned: Any, body: str, outputs: str, wanted: list[str]) -> None:
    assert names(all_chains(pruned, TOKENS.format(outputs) + f"{{ {body} }}")) == wanted


@pytest.mark.parametrize("constant", ["deeper", "scalar", "short"])
def test_constants_that_are_no_bias(pruned: Any, constant: str) -> None:
    (found,) = all_chains(pruned, TOKENS.format("float y") + f"{{ m = MatMul(x, w) y = Add(m, {constant}) }}")
    assert found.bias == "" and found.output == "m"


def test_everything_that_a_chain_holds(pruned: Any) -> None:
    text = (
        TOKENS.format("float y")
        + """{
        m = MatMul(x, w) h = Add(m, flat) s = Add(r, h)
        y = LayerNormalization <epsilon = 0.5> (s, gamma, beta) }"""
    )
    chain = all_chains(pruned, text)[-1]
    assert (chain.nodes, chain.output, chain.bias, chain.residual) == ((0, 1, 2, 3), "y", "flat", "r")
    assert chain.norm == ("gamma", "beta") and chain.numbers == {"epsilon": 0.5}


CONV = {
    "bias": ("c = Conv(x, w, cb) y = Relu(c)", ["Conv", "ConvRelu"], "cb"),
    "bias by Add": ("c = Conv(x, w) y = Add(c, channel)", ["Conv"], "channel"),
    "columns": ("c = Conv(x, w) y = Add(c, row)", ["Conv"], ""),
    "second bias": ("c = Conv(x, w, cb) y = Add(c, channel)", ["Conv"], "cb"),
    "residual": (
        "c = Conv(x, w) s = Add(c, r) y = Clip(s, zero, six)",
        ["Conv", "ConvAdd", "ConvAddClip"],
        "",
    ),
    "no norm": ("c = Conv(x, w) y = LayerNormalization(c, row, row)", ["Conv"], ""),
}


@pytest.mark.parametrize(("body", "wanted", "bias"), CONV.values(), ids=CONV)
def test_conv(pruned: Any, body: str, wanted: list[str], bias: str) -> None:
    found = all_chains(pruned, IMAGE.format("float y") + f"{{ {body} }}", (16, 8, 3, 3))
    assert names(found) == wanted and found[-1].bias == bias


@pytest.mark.parametrize(
    ("opset", "clip"),
    [(17, "Clip(c, zero, six)"), (11, "Clip(c, zero, six)"), (9, "Clip<min=0.0, max=6.0>(c)")],
)
def test_limits(pruned: Any, opset: int, clip: str) -> None:
    text = IMAGE.format("float y") + f"{{ c = Conv(x, w) y = {clip} }}"
    chain = all_chains(pruned, text, (16, 8, 3, 3), opset)[-1]
    assert chain.op_type == "SparseGap4ConvClip" and chain.numbers == {"low": 0.0, "high": 6.0}


def test_gemm_has_no_residual(pruned: Any) -> None:
    start = "g (float[N, 24] x, float[N, 32] r) => (float y) "
    assert names(all_chains(pruned, start + "{ m = Gemm(x, w) y = Add(m, r) }")) == ["Gemm"]
    assert names(all_chains(pruned, start + "{ m = Gemm(x, w, b) y = Relu(m) }")) == ["Gemm", "GemmRelu"]
    # What follows a Gemm as an Add is its bias
    assert all_chains(pruned, start + "{ m = Gemm(x, w) y = Add(m, b) }")[-1].bias == "b"
