"""What the outputs move by, whether the measuring runs beside the caller's work or not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxprune.allocation import effect
from onnxprune.allocation.effect import Effects
from onnxprune.calibration.collect import find_stages
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.divergence import total_divergence
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.outputs import output_kind
from onnxprune.parallel import workers
from onnxprune.runtime import session
from onnxprune.solvers.layer import Solution, dense_matrix

RNG = np.random.default_rng(0)
TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 12] x) => (float[N, 64] y) {
    a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Add(c, a)  y = MatMul(d, w3) }"""
PROBES = (0, 2)


@pytest.fixture
def model() -> Model:
    proto = onnx.parser.parse_model(TEXT)
    for name, shape in (("w1", (12, 12)), ("w2", (12, 12)), ("w3", (12, 64))):
        array = RNG.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return Model(proto)


@pytest.fixture
def batches() -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.normal(size=(5, 12)).astype(np.float32)} for _ in range(3)]


@pytest.fixture
def streams(model: Model, batches: list[dict[str, np.ndarray]]) -> Iterator[Streams]:
    targets = {"x", "b", "d", "y"}
    with ArrayStore(2**30) as store:
        yield Streams(model, None, batches, targets, store, 1)


def smaller(model: Model, factors: Sequence[float]) -> dict[str, list[Solution]]:
    """Candidates of every layer: its weight times each factor."""
    weights = {layer.name: dense_matrix(model, layer) for layer in find_layers(model, min_size=1)[0]}
    return {
        name: [Solution(W * np.float32(factor), 0, None, None, 0.0) for factor in factors]
        for name, W in weights.items()
    }


def measured(model: Model, streams: Streams, told: list[str] | None = None) -> dict[str, tuple[float, ...]]:
    candidates = smaller(model, (1.0, 0.9, 0.5))
    masks = [None] * streams.size
    with Effects(model, streams, masks, PROBES, (told if told is not None else []).append) as effects:
        done: list[str] = []
        for stage in find_stages(model, find_layers(model, min_size=1)[0]):
            streams.advance([stage.value], done)
            done = [stage.value]
            effects.measure(effects.rest_of(stage), stage.layers, candidates)
    return effects.found


def test_it_is_what_the_whole_model_does(
    model: Model, batches: list[dict[str, np.ndarray]], streams: Streams
) -> None:
    told: list[str] = []
    found = measured(model, streams, told)
    assert told == list(found) == ["w1", "w2", "w3"]
    dense = session(model.to_bytes())
    for layer in find_layers(model, min_size=1)[0]:
        for number, solution in enumerate(smaller(model, (1.0, 0.9, 0.5))[layer.name]):
            changed = model.copy()
            for name, array in solution.arrays(model, layer).items():
                changed.set_array(name, array)
            other = session(changed.to_bytes())
            total = 0.0
            for probe in PROBES:
                outputs = dense.run(None, batches[probe])
                kinds = [output_kind("y", outputs[0], model)]
                total += total_divergence(kinds, outputs, other.run(None, batches[probe]), None)
            assert found[layer.name][number] == pytest.approx(total / 10, rel=1e-3, abs=1e-9)


def test_activations_that_are_too_large_to_hold(
    model: Model, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are measured before the streams advance: afterwards their place is empty."""
    monkeypatch.setattr(effect, "MAX_HELD", 0)
    settled: list[str] = []
    advance = Streams.advance

    def spy(self: Streams, targets: Any, done: Any = ()) -> None:
        settled.append(f"advance to {targets[0]}")
        advance(self, targets, done)

    monkeypatch.setattr(Streams, "advance", spy)
    found = measured(model, streams, settled)
    assert settled == ["advance to x", "w1", "advance to b", "w2", "advance to d", "w3"]
    assert all(values[0] < 1e-9 < values[1] < values[2] for values in found.values())


def test_with_and_without_workers(
    model: Model, batches: list[dict[str, np.ndarray]], streams: Streams
) -> None:
    alone = measured(model, streams)
    with workers(2), ArrayStore(2**30) as store:
        together = measured(model, Streams(model, None, batches, {"x", "b", "d", "y"}, store, 1))
    assert together == alone


def test_large_outputs_are_not_all_held(
    model: Model, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def count(kinds: Any, reference: Any, value: Any, mask: Any = None) -> float:
        compared.append(len(value[0]))
        return total_divergence(kinds, reference, value, mask)

    monkeypatch.setattr(effect, "total_divergence", count)
    monkeypatch.setattr(effect, "MAX_REFERENCE", 1)
    assert measured(model, streams).keys() == {"w1", "w2", "w3"}
    assert compared == [5] * 9  # one of the two probes


def test_what_fails_beside_fails_here(
    model: Model, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> float:
        raise RuntimeError("from the other thread")

    monkeypatch.setattr(effect, "total_divergence", fail)
    with pytest.raises(RuntimeError, match="from the other thread"):
        measured(model, streams)


def test_a_failing_caller_is_not_kept_waiting(
    model: Model, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    started = threading.Event()

    def slow(*_: Any) -> float:
        runs.append(1)
        started.set()
        time.sleep(0.05)
        return 0.0

    monkeypatch.setattr(effect, "total_divergence", slow)
    (stage, *_) = find_stages(model, find_layers(model, min_size=1)[0])
    candidates = smaller(model, [1.0] * 100)
    with (
        pytest.raises(KeyError, match="the caller's"),
        Effects(model, streams, [None] * 3, PROBES) as effects,
    ):
        streams.advance([stage.value])
        effects.measure(effects.rest_of(stage), stage.layers, candidates)
        assert started.wait(60)
        raise KeyError("the caller's")
    assert len(runs) < 200


def test_the_streams_may_advance_while_a_slow_layer_is_measured(
    model: Model, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads was taken out of them before: nothing is looked up in another thread."""
    readers: set[int] = set()
    value = Streams.value

    def spy(self: Streams, name: str, number: int, stream: int) -> Any:
        readers.add(threading.get_ident())
        return value(self, name, number, stream)

    monkeypatch.setattr(Streams, "value", spy)
    measured(model, streams)
    assert readers == {threading.get_ident()}
