from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.passes.fix_input import fix_inputs, input_value

# A network for each rate. Both branches have values and nodes of the same names; h is read inside and after.
TEXT = """g (float[N, 24] x, int64 rate, bool loud) => (float[N, 8] y, float[N, 8] z) {
    h = Relu(x)  is_high = Equal(rate, high)
    y, z = If (is_high) <
        then_branch = a () => (float[N, 8] p, float[N, 8] q) {
            m = MatMul(h, wa)  p = Tanh(m)
            q = If (loud) <then_branch = c () => (float[N, 8] r) { r = Add(m, m) },
                           else_branch = d () => (float[N, 8] s) { s = Neg(m) }> },
        else_branch = b () => (float[N, 8] p, float[N, 8] q) {
            m = MatMul(h, wb)  p = Relu(m)  q = Identity(p) }> }"""


def model(text: str = TEXT, ir_version: int = 8, **more: Any) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": 17]> {text}')
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((24, 8)).astype(np.float32) for name in ("wa", "wb")}
    constants = {"high": np.array(16000), **more}
    for name, array in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        for attribute in node.attribute:  # the weights lie inside, as Silero's do
            for inner in attribute.g.node:
                inner.name = f"node_{inner.output[0]}"
            for name, array in weights.items():
                if any(name in inner.input for inner in attribute.g.node):
                    attribute.g.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Model(proto)


def run(proto: onnx.ModelProto, rate: int, loud: bool) -> list[Any]:
    x = np.random.default_rng(1).standard_normal((3, 24)).astype(np.float32)
    feed = {"x": x, "rate": np.array(rate), "loud": np.array(loud)}
    found: list[Any] = runtime.session(proto, threads=1).run(None, feed)
    return found


@pytest.mark.parametrize(("rate", "weight"), [(16000, "wa"), (8000, "wb")])
def test_the_branch_that_is_taken_becomes_the_model(rate: int, weight: str) -> None:
    dense = model()
    assert not find_layers(dense, min_size=1)[0]
    fixed = dense.copy()
    assert fix_inputs(fixed, {"rate": rate}) == ["If(y)"]
    onnx.checker.check_model(fixed.proto, full_check=True)
    for loud in (True, False):
        wanted = run(dense.proto, rate, loud)
        for other in (rate, 5):  # the input is not read any more
            assert all(
                np.array_equal(a, b) for a, b in zip(wanted, run(fixed.proto, other, loud), strict=True)
            )
    (layer,), _ = find_layers(fixed, min_size=1)
    assert layer.name == weight
    assert list(fixed.index.inputs) == ["x", "rate", "loud"] and list(fixed.index.outputs) == ["y", "z"]
    # Nothing is left of the other branch and the condition
    assert set(fixed.index.tensors) == {weight}
    assert "Equal" not in [node.op_type for node in fixed.graph.node]


def test_an_if_that_depends_on_another_input_stays() -> None:
    fixed = model()
    fix_inputs(fixed, {"rate": 16000})
    assert [node.op_type for node in fixed.graph.node] == ["Relu", "MatMul", "Tanh", "If"]
    again = fixed.copy()
    assert fix_inputs(again, {"loud": True}) == ["node_q"]
    assert [node.op_type for node in again.graph.node] == ["Relu", "MatMul", "Tanh", "Add"]
    wanted, found = run(fixed.proto, 16000, True), run(again.proto, 16000, False)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_both_at_once() -> None:
    fixed = model()
    assert fix_inputs(fixed, {"rate": 16000, "loud": False}) == ["If(y)", "node_q"]
    assert "If" not in [node.op_type for node in fixed.graph.node]
    wanted, found = run(model().proto, 16000, False), run(fixed.proto, 1, True)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_an_input_that_decides_nothing_is_a_constant() -> None:
    text = "g (float[N, 24] x, float k) => (float[N, 24] y) { y = Mul(x, k) }"
    fixed = model(text)
    assert fix_inputs(fixed, {"k": 3}) == []
    x = np.ones((2, 24), np.float32)
    feed = {"x": x, "k": np.array(7, np.float32)}
    assert np.array_equal(runtime.session(fixed.proto).run(None, feed)[0], 3 * x)


def test_outputs_from_outside_and_twice() -> None:
    text = """g (float[N, 24] x, bool c) => (float[N, 24] y, float[N, 24] z, float[N, 24] o) {
        y, z, o = If (c) <
            then_branch = a () => (float[N, 24] p, float[N, 24] p, float[N, 24] x) { p = Relu(x) },
            else_branch = b () => (float[N, 24] q, float[N, 24] q, float[N, 24] x) { q = Neg(x) }> }"""
    fixed = model(text)
    wanted = np.random.default_rng(1).standard_normal((3, 24)).astype(np.float32)
    assert fix_inputs(fixed, {"c": False}) == ["If(y)"]
    found = runtime.session(fixed.proto).run(None, {"x": wanted, "c": np.array(True)})
    assert all(np.array_equal(a, b) for a, b in zip(found, (-wanted, -wanted, wanted), strict=True))


def test_names_that_others_have_change() -> None:
    """Two Ifs whose branches use the same names: side by side one of them must give way."""
    branch = """<then_branch = a () => (float[N, 24] p) { m = Neg(x) p = Relu(m) },
                 else_branch = b () => (float[N, 24] p) { m = Abs(x) p = Relu(m) }>"""
    text = f"""g (float[N, 24] x, bool c, bool d) => (float[N, 24] y, float[N, 24] z) {{
        y = If (c) {branch} z = If (d) {branch} }}"""
    fixed, x = model(text), np.random.default_rng(1).standard_normal((3, 24)).astype(np.float32)
    assert fix_inputs(fixed, {"c": True, "d": False}) == ["If(y)", "If(z)"]
    onnx.checker.check_model(fixed.proto, full_check=True)
    names = [node.name for node in fixed.graph.node]
    assert len(set(names)) == 4
    found = runtime.session(fixed.proto).run(None, {"x": x, "c": np.array(False), "d": np.array(True)})
    assert np.array_equal(found[0], np.maximum(-x, 0)) and np.array_equal(found[1], np.abs(x))


def test_a_condition_that_callers_may_replace_stays() -> None:
    fixed = model()
    fixed.graph.input.append(helper.make_tensor_value_info("high", onnx.TensorProto.INT64, []))
    fixed.reindex()
    assert fix_inputs(fixed, {"rate": 16000}) == []
    assert [node.op_type for node in fixed.graph.node] == ["Relu", "Equal", "If"]


def test_before_ir_version_4_constants_are_no_inputs_afterwards() -> None:
    old = model(ir_version=3)
    old.graph.input.append(helper.make_tensor_value_info("high", onnx.TensorProto.INT64, []))
    old.reindex()
    fix_inputs(old, {"rate": 16000})
    assert old.proto.ir_version == 4 and [i.name for i in old.graph.input] == ["x", "rate", "loud"]
    onnx.checker.check_model(old.proto, full_check=True)


class TestValues:
    def test_are_of_the_type_of_the_input(self) -> None:
        found = input_value(model(), "rate", 16000.0)
        assert found.dtype == np.int64 and found.shape == () and found == 16000
        assert input_value(model(), "loud", True).dtype == np.bool_

    def test_a_number_has_as_many_axes_as_the_input(self) -> None:
        text = "g (float[1, K] x) => (float[1, K] y) { y = Neg(x) }"
        assert input_value(model(text), "x", 2).shape == (1, 1)
        assert input_value(model(text), "x", [[1, 2]]).tolist() == [[1, 2]]

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("rat", 1, "no input named 'rat'"),
            ("high", 1, "no input named 'high'"),
            ("rate", 0.5, "holds int64, which 0.5 is not"),
            ("rate", "16k", "holds int64, which '16k' is not"),
            ("rate", None, "which None is not"),
            ("rate", [[1], [1, 2]], "holds int64"),
            ("loud", 2, "holds bool, which 2 is not"),
            ("rate", [1, 2], r"has shape \[\], its value \[2\]"),
            ("x", [[1.0, 2.0]], r"has shape \[\?, 24\], its value \[1, 2\]"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, name: str, value: Any, text: str) -> None:
        before = model()
        with pytest.raises(ModelError, match=text):
            fix_inputs(before, {name: value})
        assert before.proto == model().proto
