from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx.parser
import pytest

from onnxprune.errors import ModelError
from onnxprune.files.order import sort_nodes
from onnxprune.files.validate import check_structure

Build = Callable[..., onnx.ModelProto]
CHAIN = "g (float[N] x) => (float[N] y) { a = Relu(x) b = Abs(a) c = Neg(x) y = Add(b, c) }"


def shuffled(model: onnx.ModelProto, *order: int) -> onnx.ModelProto:
    nodes = [onnx.NodeProto.FromString(model.graph.node[i].SerializeToString()) for i in order]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def outputs(model: onnx.ModelProto) -> list[str]:
    return [node.output[0] for node in model.graph.node]


def test_only_what_is_out_of_order_moves(build_model: Build) -> None:
    model = shuffled(build_model(CHAIN), 3, 1, 2, 0)
    before = {node.output[0]: node.SerializeToString() for node in model.graph.node}
    assert sort_nodes(model) == 1
    assert outputs(model) == ["c", "a", "b", "y"]
    assert {node.output[0]: node.SerializeToString() for node in model.graph.node} == before
    check_structure(model)


def test_sorted_nodes_stay(build_model: Build) -> None:
    model = build_model(CHAIN)
    before = model.SerializeToString()
    assert sort_nodes(model) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize("fault", ["cycle", "itself", "two makers"])
def test_what_no_order_helps_is_refused_as_it_is(build_model: Build, fault: str) -> None:
    model = build_model(CHAIN)
    if fault == "cycle":
        model.graph.node[0].input[0] = "b"
    elif fault == "itself":
        model.graph.node[0].input[0] = "a"
    else:
        model = shuffled(model, 3, 1, 2, 0)
        model.graph.node.append(model.graph.node[3])
    before = model.SerializeToString()
    assert sort_nodes(model) == 0
    assert model.SerializeToString() == before
    with pytest.raises(ModelError, match="cannot be sorted: they form a cycle, or two make one value"):
        check_structure(model)


def test_subgraphs_and_what_they_read_outside(build_model: Build) -> None:
    text = """g (float[N] x, bool c) => (float[N] y) {
        a = Relu(x)
        y = If (c) <then_branch = t () => (float[N] u) { v = Neg(a) u = Abs(v) },
                    else_branch = e () => (float[N] w) { w = Identity(a) }>
    }"""
    model = shuffled(build_model(text), 1, 0)
    inner = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    inner.node.reverse()
    assert sort_nodes(model) == 2
    assert outputs(model) == ["a", "y"]
    check_structure(model)


def test_functions() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N] x) => (float[N] y) { y = local.F(x) }
        <opset_import: ["": 17], domain: "local"> F (a) => (b) { c = Neg(a) b = Abs(c) }"""
    )
    model.functions[0].node.reverse()
    assert sort_nodes(model) == 1
    check_structure(model)
