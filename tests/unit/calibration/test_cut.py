from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.calibration.cut import Cutter, Segment
from onnxprune.model import Model

Build = Callable[..., onnx.ModelProto]
TEXT = """g (float[N, 4] x, bool c) => (float[N, 4] y) {
    one = Constant<value = float[1] {1.0}>()
    two = Add(one, one)
    a = MatMul(x, w)
    b = Mul(a, two)
    left, right = Split<axis=1>(b, sizes)
    d = Concat<axis=1>(right, left)
    e = If(c)<
        then_branch = t () => (float[N, 4] p) { p = Add(d, shift) },
        else_branch = f () => (float[N, 4] q) { q = Relu(a) }>
    y = MatMul(e, v)
}"""
WEIGHTS = {
    "w": np.eye(4, dtype=np.float32),
    "v": np.ones((4, 4), np.float32),
    "shift": np.ones(4, np.float32),
    "sizes": np.array([1, 3]),
}
NAMES = ["one", "two", "a", "b", "left", "d", "e", "y"]


@pytest.fixture
def cutter(build_model: Build) -> Cutter:
    return Cutter(Model(build_model(TEXT, WEIGHTS)))


def positions(cutter: Cutter, *names: str) -> tuple[int, ...]:
    return tuple(sorted(cutter.model.index.producer[name] for name in names))


def test_constants_are_what_depends_on_weights_only(cutter: Cutter) -> None:
    assert cutter.constant == {"one", "two", *WEIGHTS}


def test_random_nodes_are_not_constant(build_model: Build) -> None:
    text = """g (float[4] x) => (float[4] y) {
        r = RandomNormal<shape=[4]>()  z = Add(r, k)  s = Sqrt(k)  t = Add(s, z)  y = Add(x, t) }"""
    model = Model(build_model(text, {"k": np.ones(4, np.float32)}))
    assert Cutter(model).constant == {"k", "s"}


def test_randomness_inside_a_branch_is_not_constant(build_model: Build) -> None:
    text = """g (float[4] x) => (float[4] y) {
        r = If(c)<then_branch = t () => (float[4] p) { p = RandomNormal<shape=[4]>() },
                  else_branch = f () => (float[4] q) { q = Identity(k) }>
        y = Add(x, r) }"""
    model = Model(build_model(text, {"k": np.ones(4, np.float32), "c": np.array(True)}))
    assert "r" not in Cutter(model).constant


def test_segment_from_the_inputs(cutter: Cutter) -> None:
    assert cutter.segment(["b"]) == Segment(positions(cutter, "one", "two", "a", "b"), ("x",), ("w",))


def test_segment_from_known_values(cutter: Cutter) -> None:
    assert cutter.segment(["d"], {"b", "x"}) == Segment(positions(cutter, "left", "d"), ("b",), ("sizes",))
    assert cutter.segment(["b", "w"], {"b", "x"}) == Segment((), ("b",), ("w",))  # they pass through


def test_segment_reads_what_its_branches_read(cutter: Cutter) -> None:
    segment = cutter.segment(["e"], {"d", "a"})
    assert segment == Segment(positions(cutter, "e"), ("a", "c", "d"), ("shift",))


def test_a_node_with_several_outputs_of_which_one_is_known(cutter: Cutter) -> None:
    """It runs again for the other; its own result is used, so nothing is both input and product."""
    segment = cutter.segment(["d"], {"left", "b"})
    assert segment.nodes == positions(cutter, "left", "d")
    assert segment.inputs == ("b",)


def test_several_targets_share_their_nodes(cutter: Cutter) -> None:
    both = cutter.segment(["left", "e"], {"x", "c"})
    assert both.nodes == cutter.segment(["e"], {"x", "c"}).nodes


def test_what_nothing_produces_is_left_to_the_caller(cutter: Cutter) -> None:
    assert cutter.ancestors(["x", "w", "unknown"]) == set()


@pytest.mark.parametrize("known", [set(), {"a"}, {"b", "a"}, {"d", "a"}])
def test_segments_compute_what_the_model_does(cutter: Cutter, known: set[str]) -> None:
    feed = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "c": np.array(True)}
    proto = onnx.ModelProto()
    proto.CopyFrom(cutter.model.proto)
    wanted = ["a", "b", "d", "e", "y"]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    values = dict(zip(wanted, runtime.session(proto, threads=1).run(None, feed), strict=True))
    values.update(feed)
    segment = cutter.segment(["y"], known | feed.keys())
    types = {name: array.dtype for name, array in values.items()}
    piece = cutter.proto(segment, types, ["e", "y"], cutter.model)
    found = runtime.session(piece, threads=1).run(["e", "y"], {n: values[n] for n in segment.inputs})
    np.testing.assert_array_equal(found[0], values["e"])
    np.testing.assert_array_equal(found[1], values["y"])


def test_a_segment_takes_the_weights_of_the_given_model(cutter: Cutter) -> None:
    other = cutter.model.copy()
    other.set_array("w", 2 * np.eye(4, dtype=np.float32))
    segment = cutter.segment(["b"])
    piece = cutter.proto(segment, {"x": np.dtype(np.float32)}, ["b"], other)
    assert [t.name for t in piece.graph.initializer] == ["w"]
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(runtime.session(piece, threads=1).run(None, {"x": x})[0], 4 * x)


def test_sparse_initializers_travel_along() -> None:
    values = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([[0, 0], [1, 1]]), "w_at")
    sparse = helper.make_sparse_tensor(values, indices, [4, 4])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        sparse_initializer=[sparse],
    )
    model = Model(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    cutter = Cutter(model)
    segment = cutter.segment(["y"], {"r"})
    assert segment == Segment((1,), ("r",), ("w",))
    piece = cutter.proto(segment, {"r": np.dtype(np.float32)}, ["y"], model)
    found = runtime.session(piece, threads=1).run(None, {"r": np.ones((1, 4), np.float32)})[0]
    np.testing.assert_array_equal(found, [[2, 3, 0, 0]])


def test_functions_and_opsets_travel_along() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "mine": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { r = Relu(x)  y = mine.twice(r) }
        <domain: "mine", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }"""
    )
    cutter = Cutter(Model(proto))
    piece = cutter.proto(cutter.segment(["y"], {"r"}), {"r": np.dtype(np.float32)}, ["y"], cutter.model)
    found = runtime.session(piece, threads=1).run(None, {"r": np.ones((1, 4), np.float32)})[0]
    np.testing.assert_array_equal(found, np.full((1, 4), 2))


def test_weights_may_stay_outside(cutter: Cutter) -> None:
    """The session is given their values; the model only says that they exist."""
    weights = {name: cutter.model.array(name) for name in ("w", "v", "shift")}
    segment = cutter.segment(["y"])
    feeds = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
    types = {name: array.dtype for name, array in feeds.items()}
    whole = cutter.proto(segment, types, ["y"], cutter.model)
    piece = cutter.proto(segment, types, ["y"], cutter.model, outside=weights)
    assert {t.name for t in piece.graph.initializer if not t.raw_data} == set(weights)
    wanted = runtime.session(whole, threads=1).run(None, feeds)[0]
    found = runtime.session(piece, threads=1, weights=weights).run(None, feeds)[0]
    np.testing.assert_array_equal(found, wanted)
    other = {name: 2 * array for name, array in weights.items()}
    found = runtime.session(piece, threads=1, weights=other).run(None, feeds)[0]
    assert np.abs(found - wanted).max() > 1


def test_states_of_recurrent_nodes_can_be_asked_for(build_model: Build) -> None:
    """They come from a copy of the node: its own output is not computed, and its weights are the model's."""
    text = """g (float[T, N, 4] x) => (float[1, N, 5] h) {
        a = Relu(x) none, h = LSTM<hidden_size=5>(a, W, R) }"""
    shapes = {"W": (1, 20, 4), "R": (1, 20, 5)}
    weights = {name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}
    model = Model(build_model(text, weights))
    cutter = Cutter(model)
    segment = cutter.segment(["states of none"])
    assert segment == Segment((0, 2), ("x",), ("R", "W"))
    assert [node.op_type for node in cutter.nodes] == ["Relu", "LSTM", "LSTM"]
    assert cutter.segment(["states of none"], {"a"}) == Segment((2,), ("a",), ("R", "W"))
    assert cutter.segment(["h"]) == Segment((0, 1), ("x",), ("R", "W"))
    other = model.copy()
    other.set_array("R", np.zeros((1, 20, 5), np.float32))
    x = np.ones((3, 2, 4), np.float32)
    for weights_of in (model, other):
        proto = cutter.proto(segment, {"x": x.dtype}, ["states of none"], weights_of)
        (states,) = runtime.session(proto).run(None, {"x": x})
        (h,) = runtime.session(weights_of.proto).run(None, {"x": x})
        assert states.shape == (3, 1, 2, 5)
        np.testing.assert_array_equal(states[-1], h)
