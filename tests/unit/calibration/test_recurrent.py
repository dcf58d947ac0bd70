"""What W and R of recurrent nodes multiply, against a plain loop over sequences and steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.calibration.collect import collect, find_stages
from onnxprune.calibration.recurrent import (
    activation,
    differs,
    previous_states,
    token_mask,
    tokens_of,
)
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import DENSE, PRUNED, Streams
from onnxprune.errors import DataError
from onnxprune.layers import Layer, Recurrence, find_layers
from onnxprune.layers.recurrent import GATES
from onnxprune.model import Model

Arrays = dict[str, np.ndarray]
WIDTH, H, T, N = 6, 5, 7, 4
KINDS = ("LSTM", "GRU", "GRU, linear_before_reset=1", "RNN")
REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass
class Case:
    """A model of one recurrent node, its input, and what the loop says each matrix multiplies.

    ``rows`` of W and, per direction (and gate, where a GRU resets first), of R; ``Y`` (T, D, N, H).
    """

    model: Model
    feeds: Arrays
    Y: np.ndarray
    rows: dict[str, list[list[np.ndarray]]] = field(default_factory=dict)


def make(
    kind: str, direction: str = "forward", *, lengths: bool = False, initial: bool = False, seed: int = 0
) -> Case:
    rng = np.random.default_rng(seed)
    op, _, more = kind.partition(", ")
    flags, gates = REVERSE[direction], GATES[op]
    D = len(flags)
    weights = {
        "W": rng.normal(0, 0.5, (D, gates * H, WIDTH)), "R": rng.normal(0, 0.5, (D, gates * H, H)),
        "B": rng.normal(0, 0.5, (D, 2 * gates * H)),
    }  # fmt: skip
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    feeds = {"x": rng.normal(0.3, 1, (T, N, WIDTH)).astype(np.float32)}
    inputs, names = f"float[{T}, {N}, {WIDTH}] x", ["x", "W", "R", "B", "", ""]
    if lengths:
        feeds["n"] = np.array([T, 4, 1, 5], np.int32)
        inputs, names[4] = f"{inputs}, int32[{N}] n", "n"
    if initial:
        feeds["h0"] = rng.normal(0, 1, (D, N, H)).astype(np.float32)
        inputs, names[5] = f"{inputs}, float[{D}, {N}, {H}] h0", "h0"
    options = f'hidden_size={H}, direction="{direction}"' + (f", {more}" if more else "")
    called = ", ".join(name or '""' for name in names).rstrip(', "')
    text = f"g ({inputs}) => (float[{T}, {D}, {N}, {H}] y) {{ y = {op}<{options}>({called}) }}"
    case = Case(Model(parse(text, weights)), feeds, np.zeros((T, D, N, H), np.float32))
    loop(case, op, bool(more), flags, weights)
    return case


def parse(text: str, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    # the parser has no name for an input that is left out
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> {text.replace(chr(34) * 2, "NONE")}'
    )
    for node in proto.graph.node:
        node.input[:] = ["" if name == "NONE" else name for name in node.input]
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return proto


def loop(case: Case, op: str, linear: bool, flags: tuple[bool, ...], weights: Arrays) -> None:
    """Run the node as the specification says, one sequence and one step after the other."""
    resets = op == "GRU" and not linear
    case.rows["W"] = [[]]
    case.rows["R"] = [[] for _ in range(len(flags) * (3 if resets else 1))]
    for d, backwards in enumerate(flags):
        W, R = weights["W"][d], weights["R"][d]
        of_W, of_R = np.split(weights["B"][d], 2)
        for b in range(N):
            end = int(case.feeds["n"][b]) if "n" in case.feeds else T
            h = case.feeds["h0"][d, b] if "h0" in case.feeds else np.zeros(H, np.float32)
            c = np.zeros(H)
            for t in range(end)[::-1] if backwards else range(end):
                x = case.feeds["x"][t, b]
                if d == 0:
                    case.rows["W"][0].append(x)
                new, c, reset = step(op, linear, W @ x + of_W, R, of_R, h, c)
                for k, row in enumerate((h, h, reset) if resets else (h,)):
                    case.rows["R"][d * (3 if resets else 1) + k].append(row)
                h = new
                case.Y[t, d, b] = h


def step(
    op: str, linear: bool, x: np.ndarray, R: np.ndarray, b: np.ndarray, h: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the next state, the next cell, and what the candidate gate of a GRU multiplies."""

    def f(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    if op == "RNN":
        return np.tanh(x + R @ h + b), c, h
    if op == "LSTM":
        i, o, keep, new = np.split(x + R @ h + b, 4)
        c = f(keep) * c + f(i) * np.tanh(new)
        return f(o) * np.tanh(c), c, h
    (xz, xr, xh), (Rz, Rr, Rh), (bz, br, bh) = np.split(x, 3), np.split(R, 3), np.split(b, 3)
    z, r = f(xz + Rz @ h + bz), f(xr + Rr @ h + br)
    past = r * (Rh @ h + bh) if linear else Rh @ (r * h) + bh
    return (1 - z) * np.tanh(xh + past) + z * h, c, r * h


def layers_of(model: Model) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(model, min_size=1)[0] if layer.name in "WR"}


@pytest.fixture
def store() -> Iterator[ArrayStore]:
    with ArrayStore(2**30) as held:
        yield held


def streams_of(case: Case, store: ArrayStore, other: Model | None = None) -> Streams:
    stages = find_stages(case.model, layers_of(case.model).values())
    targets = {name for stage in stages for name in stage.reads}
    return Streams(case.model, other, [case.feeds], targets, store, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", REVERSE)
@pytest.mark.parametrize(("lengths", "initial"), [(False, False), (True, False), (False, True), (True, True)])
def test_moments_are_those_of_the_rows_of_a_loop(
    store: ArrayStore, kind: str, direction: str, lengths: bool, initial: bool
) -> None:
    case = make(kind, direction, lengths=lengths, initial=initial)
    (Y,) = runtime.session(case.model.proto).run(None, case.feeds)
    np.testing.assert_allclose(case.Y, Y, atol=1e-5)  # the loop is right
    streams = streams_of(case, store)
    for stage in find_stages(case.model, layers_of(case.model).values()):
        streams.advance(stage.reads)
        moments = collect(streams, stage, [None], batches=[0], seed=0)
        rows = np.array(case.rows[stage.layers[0].name])
        assert moments.n == rows.shape[1] == (17 if lengths else T * N)
        np.testing.assert_allclose(moments.H, np.einsum("gri,grj->gij", rows, rows), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(moments.sum_p, rows.sum(1), rtol=1e-3, atol=1e-4)
        ends = case.feeds.get("n", np.full(N, T))
        assert sum(spread.squared_rows for spread in moments.spreads) == (ends.astype(int) ** 2).sum()


@pytest.mark.parametrize("function", ["Sigmoid", "HardSigmoid"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_rows_give_the_next_states(store: ArrayStore, function: str, clip: float | None) -> None:
    """ONNX Runtime's own states follow from the rows, with whatever the reset gate is."""
    case = make("GRU", "bidirectional", lengths=True, initial=True)
    node = case.model.graph.node[0]
    node.attribute.append(onnx.helper.make_attribute("activations", [function, "Tanh"] * 2))
    node.attribute.extend([onnx.helper.make_attribute("clip", clip)] if clip is not None else [])
    model = Model(case.model.proto)
    (Y,) = runtime.session(model.proto).run(None, case.feeds)
    layer = layers_of(model)["R"]
    streams = streams_of(Case(model, case.feeds, Y), store)
    streams.advance(layer.sites[0].reads)
    rows = activation(streams, layer, 0, 0, DENSE)
    assert rows.shape == (6, N, T, H) and tokens_of(layer, rows).shape == (N, T, H)
    W, R, B = (model.array(name) for name in "WRB")
    for d in range(2):
        x = case.feeds["x"].swapaxes(0, 1) @ W[d].T + B[d, : 3 * H] + B[d, 3 * H :]
        z, r, h = (
            x[..., k * H : (k + 1) * H] + rows[3 * d + k] @ R[d, k * H : (k + 1) * H].T for k in range(3)
        )
        z, r, h = (g if clip is None else np.clip(g, -clip, clip) for g in (z, r, h))
        gate = (
            (lambda v: 1 / (1 + np.exp(-v)))
            if function == "Sigmoid"
            else (lambda v: np.clip(0.2 * v + 0.5, 0, 1))
        )
        np.testing.assert_allclose(rows[3 * d + 2], gate(r) * rows[3 * d], atol=1e-5)
        wanted = (1 - gate(z)) * np.tanh(h) + gate(z) * rows[3 * d]
        real = np.arange(T) < case.feeds["n"][:, None]
        np.testing.assert_allclose(Y[:, d].swapaxes(0, 1)[real], wanted[real], atol=1e-5)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[bool, ...]]:
    steps, batch = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    flags = draw(st.sampled_from([(False,), (True,), (False, True)]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    lengths = np.array(draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch)))
    states, initial = rng.normal(size=(steps, len(flags), batch, 2)), rng.normal(size=(len(flags), batch, 2))
    return states.astype(np.float32), initial.astype(np.float32), lengths, flags


@given(sequences())
def test_each_state_is_followed_by_the_next(
    found: tuple[np.ndarray, np.ndarray, np.ndarray, tuple[bool, ...]],
) -> None:
    states, initial, lengths, flags = found
    before = previous_states(states, Recurrence("x", False, reverse=flags), initial, lengths)
    for d, backwards in enumerate(flags):
        for b, end in enumerate(lengths):
            own = [initial[d, b], *states[:end, d, b][:: -1 if backwards else 1]]
            np.testing.assert_array_equal(before[d, b, :end][:: -1 if backwards else 1], own[:-1])
    batch_first = previous_states(
        states.transpose(2, 0, 1, 3), Recurrence("x", True, reverse=flags), initial.swapaxes(0, 1), lengths
    )
    np.testing.assert_array_equal(batch_first, before)
    zeros = previous_states(states, Recurrence("x", False, reverse=flags), None, lengths)
    again = previous_states(states, Recurrence("x", False, reverse=flags), np.zeros_like(initial), lengths)
    np.testing.assert_array_equal(zeros, again)


def test_batch_first_inputs(store: ArrayStore) -> None:
    """ONNX Runtime runs no ``layout`` 1 on the CPU, but the rows of W are there before it has to."""
    proto = make("GRU").model.proto
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("layout", 1))
    model = Model(proto)
    layer = layers_of(model)["W"]
    assert layer.sites[0].recurrence == Recurrence("x", True)
    x = np.zeros((N, T, WIDTH), np.float32)
    streams = Streams(model, None, [{"x": x}], ["x"], store, 1)
    assert activation(streams, layer, 0, 0, DENSE).shape == (N, T, WIDTH)


def test_masks_and_lengths_both_count(store: ArrayStore) -> None:
    case = make("LSTM", lengths=True)
    layers, streams = layers_of(case.model), streams_of(case, store)
    streams.advance(layers["R"].sites[0].reads)
    real = np.arange(T) < case.feeds["n"][:, None]
    for layer in layers.values():
        np.testing.assert_array_equal(token_mask(streams, layer, 0, 0, None), real)
        given_mask = np.arange(T) % 2 == np.zeros((N, 1))
        np.testing.assert_array_equal(token_mask(streams, layer, 0, 0, given_mask), real & given_mask)
        other = np.ones((N, T + 1), bool)  # of something else
        np.testing.assert_array_equal(token_mask(streams, layer, 0, 0, other), real)
    plain = make("LSTM")
    with ArrayStore(2**20) as held:
        streams = streams_of(plain, held)
        streams.advance(["x"])
        mask = np.ones((N, T), bool)
        assert token_mask(streams, layers_of(plain.model)["W"], 0, 0, mask) is mask


@pytest.mark.parametrize("kind", KINDS)
def test_states_come_from_pruned_input_weights_and_are_not_the_output(store: ArrayStore, kind: str) -> None:
    """R is solved on states that its dense values give; the node's output comes from what replaces them."""
    case = make(kind, "bidirectional")
    pruned = case.model.copy()
    layers, streams = layers_of(case.model), streams_of(case, store, pruned)
    streams._pending.add("y")
    streams.advance(layers["W"].sites[0].reads)
    pruned.set_array("W", np.where(np.abs(case.model.array("W")) > 0.4, case.model.array("W"), np.float32(0)))
    streams.weights_changed(["W"])
    streams.advance(layers["R"].sites[0].reads)
    found = [activation(streams, layers["R"], 0, 0, stream) for stream in (DENSE, PRUNED)]
    with ArrayStore(2**20) as held:
        alone = streams_of(Case(pruned.copy(), case.feeds, case.Y), held)
        alone.advance(layers["R"].sites[0].reads)
        np.testing.assert_array_equal(found[1], activation(alone, layers["R"], 0, 0, DENSE))
    assert np.abs(found[1] - found[0]).max() > 0.01
    pruned.set_array("R", np.zeros_like(case.model.array("R")))
    streams.weights_changed(["R"])
    streams.advance(["y"])
    for stream, model in ((DENSE, case.model), (PRUNED, pruned)):
        (wanted,) = runtime.session(model.proto).run(None, case.feeds)
        np.testing.assert_allclose(streams.value("y", 0, stream), wanted, atol=1e-6)


def test_two_nodes_with_one_input_share_its_rows_when_they_step_alike() -> None:
    text = """g (float[T, N, 6] x, int32[N] n) => (float[T, 1, N, 5] y) {
        a = RNN<hidden_size=5>(x, W, R) b = RNN<hidden_size=5, direction="reverse">(x, V, S)
        c = RNN<hidden_size=5>(x, U, Q, , n) y = Sum(a, b, c) }"""
    text = text.replace("Q, , n", 'Q, "", n')
    shapes = {"W": (1, 5, 6), "V": (1, 5, 6), "U": (1, 5, 6), "R": (1, 5, 5), "S": (1, 5, 5), "Q": (1, 5, 5)}
    model = Model(parse(text, {name: np.ones(shape, np.float32) for name, shape in shapes.items()}))
    stages = find_stages(model, find_layers(model, min_size=1)[0])
    assert [[layer.name for layer in stage.layers] for stage in stages] == [
        ["W", "V"],
        ["U"],
        ["R"],
        ["S"],
        ["Q"],
    ]


def test_a_recurrence_without_its_units_is_judged_on_the_dense_states(store: ArrayStore) -> None:
    """Structured pruning masks R before it is re-fitted: until then its states drift away."""
    case = make("LSTM")
    pruned = case.model.copy()
    streams = streams_of(case, store, pruned)
    for name in "WR":
        array = np.array(case.model.array(name))
        array[:, :, :3] = 0
        pruned.set_array(name, array)
    streams.weights_changed("WR")
    layers = layers_of(case.model)
    stages = {stage.layers[0].name: stage for stage in find_stages(case.model, layers.values())}
    streams.advance(stages["R"].reads)
    assert streams.differs("states of y") and not differs(streams, layers["R"], 0)
    moments = collect(streams, stages["R"], [None], batches=[0], seed=0)
    rows = np.array(case.rows["R"])
    np.testing.assert_allclose(moments.H, np.einsum("gri,grj->gij", rows, rows), rtol=1e-3, atol=1e-4)
    assert moments.G is None  # the same rows in both streams


def test_states_that_are_always_zero_are_no_statistics(store: ArrayStore) -> None:
    """As of a model that takes one step at a time, with states that nobody gave."""
    case = make("LSTM", lengths=True, initial=True)
    feeds = case.feeds | {"n": np.ones(N, np.int32), "h0": np.zeros((1, N, H), np.float32)}
    stages = {s.layers[0].name: s for s in find_stages(case.model, layers_of(case.model).values())}
    streams = streams_of(Case(case.model, feeds, case.Y), store)
    streams.advance(stages["R"].reads)
    with pytest.raises(DataError, match=r"the states that weight 'R' of node .* are zero in all") as caught:
        collect(streams, stages["R"], [None], batches=[0], seed=0)
    assert caught.value.hint and "--exclude 'R'" in caught.value.hint
    feeds["h0"] += 1
    with ArrayStore(2**20) as held:
        streams = streams_of(Case(case.model, feeds, case.Y), held)
        streams.advance(stages["R"].reads)
        assert collect(streams, stages["R"], [None], batches=[0], seed=0).n == N
