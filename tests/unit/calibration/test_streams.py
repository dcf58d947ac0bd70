"""Values of the streams are those of the whole model, at the price of one pass of each stream."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.calibration import streams as streams_module
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import DENSE, PRUNED, Streams, sample_count
from onnxprune.errors import ModelError
from onnxprune.inmemory import LARGE
from onnxprune.model import Model

Build = Callable[..., onnx.ModelProto]
RNG = np.random.default_rng(0)
# Shape arithmetic, a split, a branch that reads from outside, a Constant weight and a function.
TEXT = """<ir_version: 8, opset_import: ["": 17, "mine": 1]>
g (float[N, 4] x, bool c) => (float[N, 4] y, float[N, 4] early) {
    one = Constant<value = float[1] {1.0}>()
    a = MatMul(x, w1)
    early = Relu(a)
    shape = Shape(early)
    flat = Reshape(early, minus)
    back = Reshape(flat, shape)
    left, right = Split<axis=1>(back, sizes)
    joined = Concat<axis=1>(right, left)
    b = MatMul(joined, w2)
    e = If(c)<
        then_branch = t () => (float[N, 4] p) { s = Add(b, early)  p = Add(s, one) },
        else_branch = f () => (float[N, 4] q) { q = Sub(b, x) }>
    d = mine.gate(e, left)
    y = MatMul(d, w3)
}
<domain: "mine", opset_import: ["": 17]> gate (u, v) => (z) {
    r = Tanh(u)  m = ReduceMean<axes=[1], keepdims=1>(v)  z = Add(r, m) }
"""
FLOATS = ["a", "early", "flat", "back", "left", "right", "joined", "b", "e", "d", "y"]


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def sample_model() -> Model:
    proto = onnx.parser.parse_model(TEXT)
    weights = {"w1": noise(4, 4), "w2": noise(4, 4), "w3": noise(4, 4)}
    weights |= {"minus": np.array([-1]), "sizes": np.array([1, 3])}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.checker.check_model(proto)
    return Model(proto)


def feeds(count: int = 2) -> list[dict[str, np.ndarray]]:
    return [{"x": noise(number + 2, 4), "c": np.array(number % 2 == 0)} for number in range(count)]


def whole(model: Model, names: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the whole model once with every value as an output."""
    names = [name for name in names if name not in feed]
    if not names:
        return feed
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = runtime.session(proto, threads=1, optimize=False)
    values = {o.name: v for o, v in zip(session.get_outputs(), session.run(None, feed), strict=True)}
    return {**values, **feed}


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each node (by its first output) runs on a batch."""
    counts: Counter[str] = Counter()
    create = runtime.session

    def session(proto: onnx.ModelProto, **options: Any) -> Any:
        counts.update(node.output[0] for node in proto.graph.node)
        return create(proto, **options)

    monkeypatch.setattr(streams_module.runtime, "session", session)
    return counts


@pytest.fixture
def store() -> Iterator[ArrayStore]:
    with ArrayStore(2**30) as held:
        yield held


@pytest.mark.parametrize("budget", [2**30, 200, 0])
def test_every_value_equals_the_whole_model(
    budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, batches = sample_model(), feeds(3)
    with ArrayStore(budget) as store:
        streams = Streams(model, None, batches, FLOATS, store, threads=1)
        done: list[str] = []
        for name in FLOATS:
            streams.advance([name], done)
            done = [name]
            for number, batch in enumerate(batches):
                found = streams.value(name, number, DENSE)
                np.testing.assert_allclose(found, whole(model, [name], batch)[name], rtol=1e-5, atol=1e-6)
        assert (store.spilled > 0) == (budget < 2**30)
    assert not list(tmp_path.iterdir())


def test_each_node_runs_once(executed: Counter[str], store: ArrayStore) -> None:
    model = sample_model()
    targets = ["early", "joined", "d", "y"]
    streams = Streams(model, None, feeds(), targets, store, threads=1)
    for last, name in zip([[], *([t] for t in targets)], targets, strict=False):
        streams.advance([name], last)
    every = {node.output[0] for node in model.graph.node}
    assert set(executed) == every
    assert {name for name, count in executed.items() if count > 1} <= {"one"}  # constants come along


def test_each_node_runs_once_in_each_stream(executed: Counter[str], store: ArrayStore) -> None:
    dense = sample_model()
    pruned = dense.copy()
    targets = ["x", "early", "joined", "d", "y"]
    streams = Streams(dense, pruned, feeds(), targets, store, threads=1)
    streams.advance(["early"])
    pruned.set_array("w2", noise(4, 4))
    streams.weights_changed(["w2"])
    streams.advance(["joined"], ["early"])  # the change lies behind it: still one stream
    streams.advance(["d"], ["joined"])
    streams.advance(["y"], ["d"])
    assert {executed[n] for n in ("a", "early", "shape", "flat", "back", "left", "joined")} == {1}
    assert {executed[n] for n in ("b", "e", "d", "y")} == {2}


def test_the_pruned_stream_sees_changed_weights(store: ArrayStore) -> None:
    dense, batches = sample_model(), feeds(3)
    pruned = dense.copy()
    streams = Streams(dense, pruned, batches, FLOATS, store, threads=1)
    for weight, value in (("w1", "a"), ("w2", "b"), ("w3", "y")):
        pruned.set_array(weight, noise(4, 4))
        streams.weights_changed([weight])
        streams.advance([value])
        assert streams.differs(value)
        for number, batch in enumerate(batches):
            for stream, model in ((DENSE, dense), (PRUNED, pruned)):
                wanted = whole(model, [value], batch)[value]
                np.testing.assert_allclose(streams.value(value, number, stream), wanted, rtol=1e-5, atol=1e-6)
        pairs = list(streams.pairs(value))
        assert len(pairs) == 3 and all((a != b).any() for a, b in pairs)


def test_a_changed_constant_node_counts_as_a_weight(store: ArrayStore) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {'
        " w = Constant<value = float[2, 2] {1.0, 0.0, 0.0, 1.0}>()  y = MatMul(x, w) }"
    )
    dense = Model(proto)
    pruned = dense.copy()
    streams = Streams(dense, pruned, [{"x": noise(3, 2)}], ["y"], store, threads=1)
    pruned.set_array("w", np.zeros((2, 2), np.float32))
    streams.weights_changed(["w"])
    streams.advance(["y"])
    assert streams.value("y", 0, DENSE).any() and not streams.value("y", 0, PRUNED).any()


def test_one_array_serves_both_streams_while_they_agree(store: ArrayStore) -> None:
    dense = sample_model()
    streams = Streams(dense, dense.copy(), feeds(), ["b"], store, threads=1)
    streams.advance(["b"])
    assert not streams.differs("b")
    assert streams.value("b", 0, PRUNED) is streams.value("b", 0, DENSE)
    assert all(a is b for a, b in streams.pairs("b"))


def test_one_stream_ignores_changed_weights(store: ArrayStore) -> None:
    """One-shot pruning writes weights while only the dense stream runs."""
    model = sample_model()
    batches = feeds()
    streams = Streams(model, None, batches, ["joined", "d"], store, threads=1)
    streams.advance(["joined"])
    streams.weights_changed(["w2"])
    streams.advance(["d"], ["joined"])
    assert not streams.differs("d")
    for number, batch in enumerate(batches):
        np.testing.assert_allclose(
            streams.value("d", number, PRUNED), whole(model, ["d"], batch)["d"], rtol=1e-5
        )


def test_what_nobody_needs_is_dropped(store: ArrayStore) -> None:
    model = sample_model()
    streams = Streams(model, None, feeds(1), ["early", "y"], store, threads=1)
    streams.advance(["early"])
    assert {name for name in (*FLOATS, "x", "c") if (DENSE, 0, name) in store} == {"early", "x", "c"}
    streams.advance(["y"], ["early"])
    assert {name for name in (*FLOATS, "x", "c") if (DENSE, 0, name) in store} == {"y"}


def test_a_target_that_is_asked_for_twice_stays(store: ArrayStore) -> None:
    """Two stages may read one value, with others between them."""
    model = sample_model()
    streams = Streams(model, None, feeds(1), ["x", "a", "y"], store, threads=1)
    streams.advance(["x"])
    streams.advance(["y"])
    streams.advance(["x"], ["y"])
    assert streams.value("x", 0, DENSE).shape == (2, 4)


def test_targets_that_depend_on_weights_only(build_model: Build, store: ArrayStore) -> None:
    model = Model(
        build_model(
            "g (float[N, 4] x) => (float[N, 4] y) { t = Transpose(w)  s = MatMul(x, t)  y = Add(s, t) }",
            {"w": noise(4, 4)},
        )
    )
    streams = Streams(model, None, [{"x": noise(4, 4)}], ["t", "s"], store, threads=1)
    streams.advance(["t", "s"])
    np.testing.assert_array_equal(streams.value("t", 0, DENSE), model.array("w").T)


def test_strings_and_integers_travel_too(build_model: Build, store: ArrayStore) -> None:
    model = Model(
        build_model(
            """g (string[N] s, int64[N] i) => (float[N, 4] y) {
                same = Identity(s)  k = Cast<to=7>(same)  j = Add(k, i)  y = Gather(table, j) }""",
            {"table": noise(9, 4)},
        )
    )
    batch = {"s": np.array(["1", "2"], object), "i": np.array([3, 4])}
    streams = Streams(model, None, [batch], ["same", "j", "y"], store, threads=1)
    for name in ("same", "j", "y"):
        streams.advance([name])
    np.testing.assert_array_equal(streams.value("j", 0, DENSE), [4, 6])
    np.testing.assert_array_equal(streams.value("y", 0, DENSE), model.array("table")[[4, 6]])


def test_failures_name_the_cause(build_model: Build, store: ArrayStore) -> None:
    model = Model(
        build_model(
            "g (float[N, M] x) => (float[N, 4] y) { r = Relu(x)  y = MatMul(r, w) }", {"w": noise(4, 4)}
        )
    )
    streams = Streams(model, None, [{"x": noise(2, 3)}], ["r", "y"], store, threads=1)
    streams.advance(["r"])
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model on the given data"):
        streams.advance(["y"])


# ------------------------------------------------------------------------------------------ random graphs


@st.composite
def random_graphs(draw: st.DrawFn) -> tuple[str, list[str], int]:
    """A graph over (N, 4) values, its values in order and how many weights it has."""
    lines, values, weights = [], ["x"], 0
    value = lambda: draw(st.sampled_from(values))  # noqa: E731
    for number in range(draw(st.integers(2, 9))):
        new = f"v{number}"
        op = draw(st.sampled_from(["Relu", "Add", "MatMul", "MatMul", "Split", "If", "Reshape"]))
        if op == "Relu":
            lines.append(f"{new} = Relu({value()})")
        elif op == "Add":
            lines.append(f"{new} = Add({value()}, {value()})")
        elif op == "MatMul":
            lines.append(f"{new} = MatMul({value()}, w{weights})")
            weights += 1
        elif op == "Split":
            lines.append(f"{new}l, {new}r = Split<axis=1>({value()}, sizes)")
            lines.append(f"{new} = Concat<axis=1>({new}r, {new}l)")
        elif op == "If":
            lines.append(
                f"{new} = If(c)<"
                f"then_branch = t{number} () => (float[N, 4] p{number}) "
                f"{{ p{number} = Sub({value()}, {value()}) }}, "
                f"else_branch = f{number} () => (float[N, 4] q{number}) "
                f"{{ q{number} = Mul({value()}, half) }}>"
            )
        else:
            lines.append(
                f"{new}s = Shape({value()}) {new}f = Reshape({value()}, minus) "
                f"{new} = Reshape({new}f, {new}s)"
            )
        values.append(new)
    body = "\n".join(lines)
    outputs = ", ".join(f"float[N, 4] {name}" for name in {value(), values[-1]} - {"x"})
    return f"g (float[N, 4] x, bool c) => ({outputs}) {{ {body} }}", values, weights


def random_model(text: str, weights: int) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    rng = np.random.default_rng(1)
    arrays = {f"w{i}": rng.normal(0, 0.5, (4, 4)).astype(np.float32) for i in range(weights)}
    arrays |= {"minus": np.array([-1]), "sizes": np.array([1, 3]), "half": np.array([0.5], np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return Model(proto)


@given(random_graphs(), st.data())
def test_random_graphs(drawn: tuple[str, list[str], int], data: st.DataObject) -> None:
    text, values, weights = drawn
    dense = random_model(text, weights)
    pruned = dense.copy()
    targets = [v for v in values if data.draw(st.booleans())] or values[-1:]
    batches = [{"x": noise(3, 4), "c": np.array(data.draw(st.booleans()))}]
    changed: set[str] = set()
    found: dict[int, dict[str, np.ndarray]] = {DENSE: {}, PRUNED: {}}
    with ArrayStore(data.draw(st.sampled_from([0, 2**20]))) as store:
        streams = Streams(dense, pruned, batches, targets, store, threads=1)
        for at, target in enumerate(targets):
            streams.advance([target], targets[max(at - 1, 0) : at])
            for stream, values_of in found.items():
                values_of[target] = streams.value(target, 0, stream)
            # A weight may change as long as nothing that was computed depends on it.
            seen = streams.cutter.ancestors(targets[: at + 1])
            free = [f"w{i}" for i in range(weights) if dense.index.uses[f"w{i}"][0].index not in seen]
            for name in set(free[:1]) - changed:
                pruned.set_array(name, noise(4, 4))
                streams.weights_changed([name])
                changed.add(name)
    for stream, model in ((DENSE, dense), (PRUNED, pruned)):
        wanted = whole(model, targets, batches[0])
        for target in targets:
            np.testing.assert_allclose(found[stream][target], wanted[target], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------- tail


def run_tail(streams: Streams, model: Model, free: dict[str, np.ndarray], number: int) -> list[np.ndarray]:
    outputs = list(model.index.outputs)
    segment, session = streams.tail(outputs, list(free), 1)
    inputs = {i.name for i in session.get_inputs()}
    assert inputs == set(segment.inputs)
    feed = {n: streams.value(n, number, DENSE) for n in segment.inputs if n not in free}
    feed |= {n: a for n, a in free.items() if n in inputs}
    found: list[np.ndarray] = session.run(outputs, feed)
    return found


@pytest.mark.parametrize("at", ["x", "early", "joined", "d", "y"])
def test_tail_gives_the_outputs_of_the_whole_model(at: str, store: ArrayStore) -> None:
    """Also where an output of the model has been passed already."""
    model, batches = sample_model(), feeds()
    streams = Streams(model, None, batches, ["x", "early", "joined", "d", "y"], store, threads=1)
    streams.advance([at])
    for number, batch in enumerate(batches):
        wanted = whole(model, ["y", "early"], batch)
        found = run_tail(streams, model, {n: model.array(n) for n in ("w1", "w2", "w3")}, number)
        np.testing.assert_allclose(found[0], wanted["y"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1], wanted["early"], rtol=1e-4, atol=1e-5)


def test_tail_uses_the_weights_it_is_given(store: ArrayStore) -> None:
    model, batches = sample_model(), feeds(1)
    streams = Streams(model, None, batches, ["joined", "y", "early"], store, threads=1)
    streams.advance(["joined"])
    new = noise(4, 4)
    other = model.copy()
    other.set_array("w2", new)
    wanted = whole(other, ["y"], batches[0])["y"]
    found = run_tail(streams, model, {"w2": new}, 0)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(found - whole(model, ["y"], batches[0])["y"]).max() > 1e-3


def test_tail_with_a_constant_node_as_weight(store: ArrayStore) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {'
        " w = Constant<value = float[2, 2] {1.0, 0.0, 0.0, 1.0}>()  r = Relu(x)  y = MatMul(r, w) }"
    )
    model = Model(proto)
    streams = Streams(model, None, [{"x": noise(3, 2)}], ["r", "y"], store, threads=1)
    streams.advance(["r"])
    assert not run_tail(streams, model, {"w": np.zeros((2, 2), np.float32)}, 0)[0].any()


def test_tail_when_an_output_depends_on_weights_only(build_model: Build, store: ArrayStore) -> None:
    model = Model(
        build_model(
            """g (float[N, 4] x) => (float[N, 4] y, float[4, 4] t, float[4, 4] k) {
                t = Transpose(w)  r = Relu(x)  y = MatMul(r, w) }""",
            {"w": noise(4, 4), "k": noise(4, 4)},
        )
    )
    streams = Streams(model, None, [{"x": noise(3, 4)}], ["r", "y", "t", "k"], store, threads=1)
    streams.advance(["r"])
    _, t, k = run_tail(streams, model, {}, 0)
    np.testing.assert_array_equal(t, model.array("w").T)
    np.testing.assert_array_equal(k, model.array("k"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_large_weights_are_read_where_they_are(build_model: Build, store: ArrayStore, dtype: str) -> None:
    """They do not pass through protobuf, and each stream has its own."""
    kind = {"float32": "float", "float16": "float16"}[dtype]
    weights = {"w": noise(80, 80).astype(dtype), "v": noise(80, 80).astype(dtype)}
    assert all(array.size >= LARGE for array in weights.values())
    text = f"g ({kind}[N, 80] x) => ({kind}[N, 80] y) {{ h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }}"
    dense = Model(build_model(text, weights))
    pruned = dense.copy()
    batches = [{"x": noise(3, 80).astype(dtype)}]
    streams = Streams(dense, pruned, batches, ["x", "r", "y"], store, threads=1)
    streams.advance(["x"])
    pruned.set_array("w", np.tril(weights["w"]))
    streams.weights_changed(["w"])
    streams.advance(["r"])
    pruned.set_array("v", np.tril(weights["v"]))
    streams.weights_changed(["v"])
    streams.advance(["y"])
    for stream, model in ((DENSE, dense), (PRUNED, pruned)):
        np.testing.assert_allclose(
            streams.value("y", 0, stream), whole(model, ["y"], batches[0])["y"], rtol=1e-2, atol=0.1
        )
    assert np.abs(streams.value("y", 0, PRUNED) - streams.value("y", 0, DENSE)).max() > 1


def test_weights_that_no_later_node_reads_are_let_go(build_model: Build, store: ArrayStore) -> None:
    text = "g (float[N, 80] x) => (float[N, 80] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    dense = Model(build_model(text, {"w": noise(80, 80), "v": noise(80, 80)}))
    streams = Streams(dense, None, [{"x": noise(3, 80)}], ["x", "r", "y"], store, threads=1)
    streams.advance(["r"])
    assert streams._arrays[DENSE] == {}
    streams.advance(["y"], ["r"])
    assert streams._arrays[DENSE] == {}


def test_samples_are_those_of_the_inputs_with_a_batch_axis() -> None:
    batch = {"x": np.zeros((3, 4)), "table": np.zeros((50, 4)), "scale": np.zeros(())}
    assert sample_count(batch, frozenset(["x"])) == 3
    assert sample_count(batch, None) == 50
    assert sample_count({"scale": np.zeros(())}, frozenset()) == 1
