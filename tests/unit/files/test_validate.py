"""Unusual models that are fine. Those that are not are in ``test_io.py``, read from files."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.files.validate import MAX_CALL_DEPTH, check_structure

VALID = {
    "optional inputs left out": "g (float[4] x) => (float[4] y) { y = Clip(x, , top) top2 = Identity(top) }",
    "outputs left out": "g (float[4] x) => (float[4] y) { y, = Dropout(x) }",
    "unused value": "g (float[4] x) => (float[4] y) { y = Relu(x) z = Relu(x) }",
    "same output twice": "g (float[4] x) => (float[4] y, float[4] y) { y = Relu(x) }",
    "input is an output": "g (float[4] x) => (float[4] x) { y = Relu(x) }",
    "output of unknown type": "g (float[4] x) => (y) { y = Relu(x) }",
    "initializer that is an input": "g (float[4] x, float[4] top) => (float[4] y) { y = Add(x, top) }",
    "runtime domain without import": "g (float[4] x) => (float[4] y) { y = com.microsoft.Gelu(x) }",
    "nodes without names": "g (float[4] x) => (float[4] y) { a = Relu(x) y = Relu(a) }",
    "branches that use the same names": """g (float[4] x, bool c) => (float[4] y) {
        y = If(c)<then_branch = t () => (float[4] a) { s = Relu(x) a = Relu(s) },
                  else_branch = e () => (float[4] a) { s = Neg(x) a = Relu(s) }> }""",
    "loop with its own names": """g (float[4] x, int64 n, bool c) => (float[4] y) {
        y = Loop(n, c, x)<body = b (int64 i, bool go, float[4] v) => (bool go2, float[4] v2) {
            go2 = Identity(go) v2 = Add(v, x) }> }""",
    "value of two scopes up": """g (float[4] x, bool c) => (float[4] y) {
        r = Relu(x)
        y = If(c)<
            then_branch = t () => (float[4] a) { a = If(c)<
                then_branch = t2 () => (float[4] a2) { a2 = Neg(r) },
                else_branch = e2 () => (float[4] b2) { b2 = Abs(r) }> },
            else_branch = e () => (float[4] b) { b = Relu(r) }> }""",
}


@pytest.mark.parametrize("case", VALID)
def test_valid(case: str) -> None:
    text = VALID[case]
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.initializer.add(name="top", data_type=TensorProto.FLOAT)
    check_structure(model)


def chain(length: int) -> onnx.ModelProto:
    """A chain of local functions: F0 calls F1 calls F2 ..."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for i in range(length):
        last = i == length - 1
        node = helper.make_node("Relu" if last else f"F{i + 1}", ["a"], ["b"], domain="" if last else "local")
        functions.append(helper.make_function("local", f"F{i}", ["a"], ["b"], [node], imports))
    graph = onnx.parser.parse_graph("g (float[4] x) => (float[4] y) { y = local.F0(x) }")
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)


def test_long_chains_of_functions_end_at_the_limit() -> None:
    check_structure(chain(MAX_CALL_DEPTH))
    with pytest.raises(ModelError, match="nested more than 128 deep"):
        check_structure(chain(MAX_CALL_DEPTH + 1))


def test_recursion_through_a_subgraph() -> None:
    model = chain(2)
    branch = onnx.parser.parse_graph("g () => (float[4] o) { o = local.F0(a) }")
    node = helper.make_node("If", ["a"], ["b"], then_branch=branch, else_branch=branch)
    model.functions[1].node[0].CopyFrom(node)
    with pytest.raises(ModelError, match="'F0' calls itself"):
        check_structure(model)


def test_unused_functions_are_checked_too() -> None:
    model = chain(1)
    model.functions.append(helper.make_function("local", "Self", ["a"], ["b"], [], model.opset_import))
    model.functions[1].node.append(helper.make_node("Self", ["a"], ["b"], domain="local"))
    with pytest.raises(ModelError, match="'Self' calls itself"):
        check_structure(model)


def test_overloads_are_different_functions() -> None:
    model = chain(1)
    model.functions.append(model.functions[0])
    model.functions[1].overload = "second"
    check_structure(model)


def test_function_parameter_as_tensor() -> None:
    model = chain(1)
    node = helper.make_node("Constant", [], ["k"])
    node.attribute.add(name="value", ref_attr_name="parameter", type=onnx.AttributeProto.TENSOR)
    model.functions[0].node.insert(0, node)
    model.functions[0].attribute.append("parameter")
    check_structure(model)


def test_function_imports_its_own_opsets() -> None:
    model = chain(2)
    model.functions[0].opset_import.pop()
    with pytest.raises(ModelError, match="of domain 'local', which has no opset import in function 'F0'"):
        check_structure(model)
