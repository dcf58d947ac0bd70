"""What is pinned, and why; names; what is not followed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxprune.model import Model
from onnxprune.structure.find import find_structure
from tests.unit.structure.graphs import (
    FIRST,
    IMAGE,
    LAST,
    TOKENS,
    assert_removal_is_masking,
    graph,
    pinned,
    reasons,
    summary,
)


def test_an_operator_that_is_not_followed() -> None:
    text = f"{TOKENS} {{ a = MatMul(x, w0) b = Trilu(a) y = MatMul(b, w1) }}"
    assert "Trilu(b) is not followed" in pinned(text, {"w0": (6, 8), "w1": (8, 4)})


def test_quantised_weights() -> None:
    text = f"{TOKENS} {{ w = DequantizeLinear(q, s) a = MatMul(x, w) y = MatMul(a, w1) }}"
    weights = {"q": np.ones((6, 8), np.int8), "s": np.array(0.5, np.float32), "w1": (8, 4)}
    assert "quantised" in pinned(text, weights)


def test_a_value_that_a_subgraph_reads() -> None:
    model, feeds = graph(
        f"{TOKENS} {{ a = MatMul(x, w0) y0 = MatMul(a, w1) y = Identity(y0) }}", {"w0": (6, 8), "w1": (8, 4)}
    )
    branch = helper.make_graph(
        [helper.make_node("ReduceSum", ["a"], ["inner"], keepdims=0)],
        "branch",
        [],
        [onnx.ValueInfoProto(name="inner")],
    )
    node = helper.make_node("If", ["yes"], ["total"], name="if", then_branch=branch, else_branch=branch)
    model.graph.node.insert(2, node)
    model.graph.node[-1].CopyFrom(helper.make_node("Add", ["y0", "total"], ["y"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    structure = find_structure(Model(model.proto), feeds)
    assert not structure.groups
    assert "read inside the subgraph of if" in " ".join(item.reason for item in structure.pinned)


def test_graph_outputs_in_between() -> None:
    text = """(float[N, L, 6] x) => (float[N, L, C] y, float[N, L, D] b) { a = MatMul(x, w0) b = Relu(a)
        y = MatMul(b, w1) }"""
    assert "it reaches the graph output 'b'" in pinned(text, {"w0": (6, 8), "w1": (8, 4)})


def test_made_up_inputs() -> None:
    model, _ = graph(f"{IMAGE} {{ a = Conv(x, w0, b0) y = Conv(a, w9) }}", FIRST | LAST)
    assert summary(find_structure(model)) == [("channel", 8)]


def test_float16() -> None:
    text = "(float16[N, 6] x) => (float16[N, C] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }"
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.normal(size=(6, 8)).astype(np.float16),
        "w1": rng.normal(size=(8, 4)).astype(np.float16),
    }
    model, _ = graph(text, weights)
    feeds = {"x": rng.normal(size=(2, 6)).astype(np.float16)}
    assert summary(assert_removal_is_masking(model, feeds)) == [("neuron", 8)]


STEPS = {
    "conv": "{out} = Conv({x}, {w})",
    "depthwise": "{out} = Conv<group = 6>({x}, {w})",
    "groups": "{out} = Conv<group = 2>({x}, {w})",
    "relu": "{out} = LeakyRelu({x})",
    "residual": "{out} = Add({x}, {y})",
    "gate": "{out} = Mul({x}, {y})",
    "halves": "{out}a, {out}b = Split<axis = 1>({x}, halves) {out} = Concat<axis = 1>({out}b, {out}a)",
    "shuffle": "{out}r = Reshape({x}, wide) {out}t = Transpose<perm = [0, 2, 1, 3, 4]>({out}r)"
    " {out} = Reshape({out}t, flat)",
    "rms": "{out}q = Mul({x}, {x}) {out}m = ReduceMean<axes = [1]>({out}q) {out}e = Add({out}m, eps)"
    " {out}r = Sqrt({out}e) {out}d = Div({x}, {out}r) {out} = Mul({out}d, {w})",
    "pool": "{out} = AveragePool<kernel_shape = [1, 1]>({x})",
}
EPSILON = np.float32(0.3)  # so large that its digits count
SHAPES = {"conv": (6, 6, 1, 1), "depthwise": (6, 1, 1, 1), "groups": (6, 3, 1, 1), "rms": (6, 1, 1)}


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9)), min_size=1, max_size=9))
def test_any_chain_of_operators(steps: list[tuple[str, int]]) -> None:
    """Values with six channels, joined at random: whatever is found, removal equals masking."""
    values, nodes, weights = ["v"], ["v = Conv(x, first)"], {"first": (6, 3, 1, 1), "last": (4, 6, 1, 1)}
    weights |= {"halves": [2, 4], "wide": [0, 3, 2, 6, 7], "flat": [0, 6, 6, 7], "eps": EPSILON}
    for number, (step, other) in enumerate(steps):
        out = f"v{number}"
        if step in SHAPES:
            weights[f"w{number}"] = SHAPES[step]
        y = values[other % len(values)]
        nodes.append(STEPS[step].format(out=out, x=values[-1], y=y, w=f"w{number}"))
        values.append(out)
    text = f"{IMAGE} {{ {' '.join(nodes)} y = Conv({values[-1]}, last) }}"
    read = {name: value for name, value in weights.items() if name in text}
    model, feeds = graph(text, read)
    assert_removal_is_masking(model, feeds)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_the_model_is_left_as_it_is(opset: int) -> None:
    model, feeds = graph(f"{IMAGE} {{ a = Conv(x, w0, b0) y = Conv(a, w9) }}", FIRST | LAST, opset)
    before = model.to_bytes()
    find_structure(model, feeds)
    assert model.to_bytes() == before


def test_positions_of_what_is_not_zero() -> None:
    text = """(float[N, 6] x) => (float[N, C] y, int64[2, K] z) { a = MatMul(x, w0) b = Relu(a) z = NonZero(b)
        y = MatMul(b, w1) }"""
    assert "NonZero(z) is not followed" in pinned(text, {"w0": (6, 8), "w1": (8, 4)})


def test_weights_that_callers_may_give() -> None:
    model, feeds = graph(f"{IMAGE} {{ a = Conv(x, w0, b0) y = Conv(a, w9) }}", FIRST | LAST)
    model.graph.input.append(helper.make_tensor_value_info("w9", onnx.TensorProto.FLOAT, [5, 8, 1, 1]))
    model.reindex()
    structure = find_structure(model, feeds)
    assert not structure.groups and "callers may give another 'w9'" in reasons(structure)
    model.proto.ir_version = 3  # there, the listing says nothing
    assert summary(find_structure(model, feeds)) == [("channel", 8)]
