"""Operators tell their probabilities, also with caches, 4-D keys and sizes of their own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.attention.find import find_attention
from onnxprune.attention.fused import FUSED, Probe
from onnxprune.errors import ModelError
from onnxprune.model import Model
from tests.unit.attention.forms import HEADS, OPERATORS, SIZE, heads, make, softmax

MS = "com.microsoft"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def probed(node: onnx.NodeProto, feeds: dict[str, np.ndarray], opset: int = 17) -> np.ndarray:
    """Probabilities of a model that is one node."""
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), None)
        for n, a in feeds.items()
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    model = Model(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    (block,), _ = find_attention(model)
    return Probe(model, block, set(), threads=1).run(feeds)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator(name: str) -> None:
    case = make(name)
    (block,), _ = find_attention(case.model)
    values = {n: case.weights[n] for n in ("wq", "wk", "wv") if n in case.model.index.tensors}
    if not values:  # it projects by itself
        found = Probe(case.model, block, set(case.model.index.tensors), threads=1).run(case.feed)
    else:
        from onnxprune import runtime

        proto = onnx.ModelProto()
        proto.CopyFrom(case.model.proto)
        names = [
            n for n in case.model.graph.node[block.node].input if n and n not in case.model.index.tensors
        ]
        proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
        arrays = dict(zip(names, runtime.session(proto, threads=1).run(names, case.feed), strict=True))
        found = Probe(case.model, block, set(case.model.index.tensors), threads=1).run(arrays)
    real = case.mask if case.mask is not None else np.ones(case.P.shape[::3], bool)
    assert found.shape == case.P.shape
    for sample, wanted, rows in zip(found, case.P, real, strict=True):
        np.testing.assert_allclose(sample[:, rows], wanted[:, rows], rtol=1e-4, atol=1e-6)


def test_keys_of_the_past() -> None:
    width = HEADS * SIZE
    feeds = {"q": noise(2, 3, width), "k": noise(2, 3, width), "v": noise(2, 3, width)}
    feeds |= {"pk": noise(2, HEADS, 4, SIZE), "pv": noise(2, HEADS, 4, SIZE)}
    node = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v", "", "", "", "pk", "pv"],
        ["y", "nk", "nv"],
        domain=MS,
        num_heads=HEADS,
    )
    keys = np.concatenate([feeds["pk"], heads(feeds["k"])], 2)
    wanted = softmax(heads(feeds["q"]) @ keys.swapaxes(2, 3) / np.sqrt(SIZE))
    np.testing.assert_allclose(probed(node, feeds), wanted, rtol=1e-4, atol=1e-6)


def test_keys_of_another_sequence() -> None:
    feeds = {"q": noise(2, 3, HEADS * SIZE), "k": noise(2, HEADS, 7, SIZE), "v": noise(2, HEADS, 7, SIZE)}
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain=MS, num_heads=HEADS)
    wanted = softmax(heads(feeds["q"]) @ feeds["k"].swapaxes(2, 3) / np.sqrt(SIZE))
    np.testing.assert_allclose(probed(node, feeds), wanted, rtol=1e-4, atol=1e-6)


def test_sizes_of_their_own() -> None:
    """Values smaller than queries and keys, and no bias."""
    x, size = noise(2, 3, 10), 4
    weight = noise(10, 2 * HEADS * SIZE + HEADS * size)
    node = helper.make_node(
        "Attention", ["x", "w"], ["y"], domain=MS, num_heads=HEADS,
        qkv_hidden_sizes=[HEADS * SIZE, HEADS * SIZE, HEADS * size],
    )  # fmt: skip
    q, k, _ = np.split(x @ weight, [HEADS * SIZE, 2 * HEADS * SIZE], 2)
    wanted = softmax(heads(q) @ heads(k).swapaxes(2, 3) / np.sqrt(SIZE))
    np.testing.assert_allclose(probed(node, {"x": x, "w": weight}), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "inputs", "why"),
    [
        ("MultiHeadAttention", ["q", "k"], "packed keys and values"),
        ("Attention", ["q", "k", "", "", "k"], "of the past"),
    ],
)
def test_what_cannot_be_told(op: str, inputs: list[str], why: str) -> None:
    feeds = {"q": noise(2, 3, HEADS * SIZE), "k": noise(2, 3, HEADS, 2, SIZE)}
    node = helper.make_node(op, inputs, ["y"], domain=MS, num_heads=HEADS)
    with pytest.raises(ModelError, match=why):
        probed(node, feeds)


def test_a_node_that_does_not_run_is_named() -> None:
    feeds = {"q": noise(2, 3, 10), "k": noise(2, 3, 10), "v": noise(2, 3, 10)}
    node = helper.make_node(
        "MultiHeadAttention", ["q", "k", "v"], ["y"], name="broken", domain=MS, num_heads=HEADS
    )
    with pytest.raises(ModelError, match="broken"):
        probed(node, feeds)


def test_the_table_names_its_operators() -> None:
    for domain, op in FUSED:
        assert domain in ("", MS) and "Attention" in op
