"""A mask that is repeated for the heads once, and read by several layers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.passes.own_masks import own_masks
from onnxprune.runtime import session
from onnxprune.structure.find import find_structure
from tests.unit.structure.graphs import TOKENS, assert_removal_is_masking, graph, summary


def layer(n: int, x: str, y: str, mask: str = "m4") -> str:
    parts = "".join(
        f"{name}{n} = MatMul({x}, w{name}{n}) {name}r{n} = Reshape({name}{n}, to)"
        f" {name}t{n} = Transpose<perm = [0, 2, {order}]>({name}r{n}) "
        for name, order in (("q", "1, 3"), ("k", "3, 1"), ("v", "1, 3"))
    )
    return f"""{parts} s{n} = MatMul(qt{n}, kt{n}) a{n} = Add(s{n}, {mask}) p{n} = Softmax<axis = -1>(a{n})
        o{n} = MatMul(p{n}, vt{n}) t{n} = Transpose<perm = [0, 2, 1, 3]>(o{n})
        c{n} = Reshape(t{n}, back) {y} = MatMul(c{n}, wo{n}) """


MASK = "m0 = ReduceSum<keepdims = 0>(x, last) m1 = Unsqueeze(m0, middle)"
REPEATED = "m2 = Expand(m1, wide) m3 = Reshape(m2, flat) m4 = Reshape(m3, four)"
WEIGHTS = {
    **{f"w{name}{n}": (6, 12) for name in "qkv" for n in (1, 2)},
    **{"wo1": (12, 6), "wo2": (12, 4), "to": [0, 0, 3, 4], "back": [0, 0, 12], "last": [2], "middle": [1, 2]},
    **{"wide": [1, 3, 1, 1], "flat": [-1, 1, 5], "four": [-1, 3, 1, 5], "batch": [1, 1, 1, 1]},
}
TWO = layer(1, "x", "h") + layer(2, "h", "y")


def test_layers_lose_heads_apart() -> None:
    model, feeds = graph(f"{TOKENS} {{ {MASK} {REPEATED} {TWO} }}", WEIGHTS)
    before = session(model.proto, threads=1).run(None, feeds)[0]
    assert summary(find_structure(model, feeds, 1)) == [("head", 3), ("neuron", 6)]
    assert own_masks(model) == 1
    assert np.array_equal(session(model.proto, threads=1).run(None, feeds)[0], before)
    assert summary(assert_removal_is_masking(model, feeds)) == [("head", 3), ("head", 3), ("neuron", 6)]
    assert sum(node.op_type == "Expand" for node in model.graph.node) == 2
    assert own_masks(model) == 0


@pytest.mark.parametrize(
    "body",
    [
        f"{MASK} {REPEATED} {layer(1, 'x', 'y')}",
        f"{MASK} m4 = Expand(m1, batch) {TWO}",  # nothing that a head owns
        f"{MASK} m4 = Identity(m1) {TWO}",
        f"{MASK} m2 = Expand(m1, wide) m3 = Relu(m2) m4 = Identity(m3) {TWO}",  # more than axes
    ],
    ids=["one reader", "repeated over the batch", "not repeated", "computed"],
)
def test_others_stay_as_they_are(body: str) -> None:
    model, _ = graph(f"{TOKENS} {{ {body} }}", WEIGHTS)
    before = model.to_bytes()
    assert own_masks(model) == 0
    assert model.to_bytes() == before


def test_lengths_that_are_put_together() -> None:
    body = f"""{MASK} s = Shape(x) n = Slice(s, zero, one) w4 = Concat<axis = 0>(n, heads, one, one)
        m4 = Expand(m1, w4) {TWO}"""
    weights = WEIGHTS | {"zero": [0], "one": [1], "heads": [3]}
    model, feeds = graph(f"{TOKENS} {{ {body} }}", weights)
    assert own_masks(model) == 1
    assert summary(assert_removal_is_masking(model, feeds)) == [("head", 3), ("head", 3), ("neuron", 6)]


def test_copies_take_no_name_that_a_node_has() -> None:
    model, feeds = graph(f"{TOKENS} {{ {MASK} {REPEATED} {TWO} }}", WEIGHTS)
    for number, node in enumerate(model.graph.node):
        node.name = {"Relu": "m4"}.get(node.op_type, f"m{number}_1")
    before = session(model.proto, threads=1).run(None, feeds)[0]
    assert own_masks(model) == 1
    names = [node.name for node in model.graph.node if node.name]
    assert len(names) == len(set(names))
    assert np.array_equal(session(model.proto, threads=1).run(None, feeds)[0], before)
