"""The measured effect of a layer is what pruning that layer alone does to the outputs of the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.allocation import effect, walk
from onnxprune.allocation.sensitivity import LEVELS, Sensitivity, measure
from onnxprune.calibration.collect import collect, find_stages
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model
from onnxprune.parallel import workers
from onnxprune.solvers.layer import Job, dense_matrix, solve_layers
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method

RNG = np.random.default_rng(0)
TEXT = """g (float[N, 12] x) => (float[N, 64] y, float[N, 12] hidden) {
    a = MatMul(x, w1)  hidden = Add(a, b1)  r = Relu(hidden)
    m = MatMul(r, w2)  u = Mul(m, nothing)
    k = MatMul(r, w3)  s = Add(k, u)
    y = MatMul(s, w4) }"""


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def parse(text: str, weights: Mapping[str, np.ndarray]) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.checker.check_model(proto, full_check=True)
    return Model(proto)


@pytest.fixture
def model() -> Model:
    """``w2`` has no effect on the outputs; ``hidden`` is an output long before the end."""
    weights = {
        "w1": noise(12, 12),
        "b1": noise(12),
        "w2": noise(12, 12),
        "w3": noise(12, 12),
        "w4": noise(12, 64),
    }
    return parse(TEXT, {**weights, "nothing": np.zeros(1, np.float32)})


def layers_of(model: Model) -> tuple[Layer, ...]:
    return find_layers(model, min_size=1)[0]


def measured(
    model: Model, batches: list[dict[str, np.ndarray]], probes: Sequence[int] = (0,), **options: Any
) -> Sensitivity:
    layers = layers_of(model)
    sites = max(len(layer.sites) for layer in layers)
    targets = {stage.value for site in range(sites) for stage in find_stages(model, layers, site)}
    if options.get("outputs", True):
        targets |= set(model.index.outputs)
    with ArrayStore(2**30) as store:
        streams = Streams(model, None, batches, targets, store, options.pop("threads", 1))
        masks = [row_mask(batch) for batch in batches]
        options.setdefault("seed", 0)
        return measure(model, layers, streams, masks, probes, Method(), **options)


@pytest.fixture
def batches() -> list[dict[str, np.ndarray]]:
    return [{"x": noise(40, 12)} for _ in range(3)]


def test_each_layer_at_each_level(model: Model, batches: list[dict[str, np.ndarray]]) -> None:
    before = model.to_bytes()
    told: list[str] = []
    found = measured(model, batches, on_layer=told.append)
    assert model.to_bytes() == before
    assert told == ["w1", "w2", "w3", "w4"]
    assert found.levels == LEVELS and not found.tied
    assert set(found.output) == set(found.error) == set(told)
    for name in told:
        assert len(found.output[name]) == len(found.error[name]) == len(LEVELS)
        assert list(found.error[name]) == sorted(found.error[name]) and found.error[name][0] > 0
        assert found.output[name][0] <= found.output[name][-1]
    # A layer can be hard to prune and yet not matter.
    assert max(found.output["w2"]) < 1e-9 < 1e-3 < min(found.output["w4"])
    assert found.error["w2"][0] > 1e-3


def test_output_is_what_the_whole_model_does_with_that_layer_pruned(
    model: Model, batches: list[dict[str, np.ndarray]]
) -> None:
    found = measured(model, batches, probes=[1], levels=(0.6,))
    session = runtime.session(model.proto, threads=1)
    for layer in layers_of(model):
        with ArrayStore(2**30) as store:
            streams = Streams(model, None, batches, [layer.sites[0].input], store, threads=1)
            streams.advance([layer.sites[0].input])
            stage = next(s for s in find_stages(model, layers_of(model)) if layer in s.layers)
            moments = collect(streams, stage, [None] * 3, batches=[0, 2], seed=0)
        zeros = round(0.6 * layer.size)
        job = Job(layer, dense_matrix(model, layer), moments, zeros, Pattern())
        (solution,) = solve_layers([job], Method(), repair=True)
        assert found.error[layer.name][0] == pytest.approx(solution.error, rel=1e-4)
        pruned = model.copy()
        for name, array in solution.arrays(model, layer).items():
            pruned.set_array(name, array)
        wanted = 0.0
        outputs = (
            session.run(None, batches[1]),
            runtime.session(pruned.proto, threads=1).run(None, batches[1]),
        )
        for a, b in zip(*outputs, strict=True):
            wanted += float(((a - b) ** 2).sum() / (a**2).sum())
        assert found.output[layer.name][0] == pytest.approx(wanted, rel=1e-2, abs=1e-9)


def test_probes_are_not_what_the_layer_was_fitted_to(
    model: Model, batches: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def recorded(*args: Any, **options: Any) -> Moments:
        seen.append(list(options["batches"]))
        return collect(*args, **options)

    monkeypatch.setattr(walk, "collect", recorded)
    measured(model, batches, probes=[1])
    assert all(fit == [0, 2] for fit in seen)
    seen.clear()
    measured(model, batches[:1], probes=[0])  # unless there is nothing else
    assert all(fit == [0] for fit in seen)


def test_errors_alone(
    model: Model, batches: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No session runs the rest of the graph then."""
    monkeypatch.setattr(effect, "Rest", None)
    found = measured(model, batches, outputs=False)
    assert set(found.output.values()) == {()}
    assert found.error["w1"][0] > 0


def test_twice_the_same(model: Model, batches: list[dict[str, np.ndarray]]) -> None:
    assert measured(model, batches) == measured(model, batches)


def test_later_uses_of_tied_weights_are_collected() -> None:
    model = parse(
        """g (float[N, 12] x) => (float[N, 12] y) {
            a = MatMul(x, w)  r = Relu(a)  b = MatMul(r, w)  y = MatMul(b, w) }""",
        {"w": noise(12, 12)},
    )
    batches = [{"x": noise(30, 12)} for _ in range(3)]
    found = measured(model, batches, outputs=False)
    assert set(found.tied) == {"w"}
    assert found.tied["w"].n == 2 * 60  # two later uses, two batches that are not probes
    w = model.array("w")
    rows = np.maximum(np.concatenate([batch["x"] for batch in batches[1:]]) @ w, 0)
    wanted = rows.T @ rows + (rows @ w).T @ (rows @ w)
    np.testing.assert_allclose(found.tied["w"].H[0], wanted, rtol=1e-3, atol=1e-2)


def test_tables_and_padding() -> None:
    model = parse(
        """g (int64[N, T] ids, int64[N, T] attention_mask) => (float[N, T, 8] y) {
            e = Gather(table, ids)  y = MatMul(e, w) }""",
        {"table": noise(20, 12), "w": noise(12, 8)},
    )
    mask = (np.arange(6) < RNG.integers(2, 6, (30, 1))).astype(np.int64)
    batches = [{"ids": RNG.integers(1, 20, (30, 6)) * mask, "attention_mask": mask} for _ in range(2)]
    found = measured(model, batches)
    assert set(found.error["table"]) == {0.0}  # a table has no error of its own
    assert list(found.output["table"]) == sorted(found.output["table"]) and found.output["table"][0] > 1e-3
    other = model.copy()
    table = other.array("table").copy()
    table[0] *= 100  # only padding looks it up
    other.set_array("table", table)
    np.testing.assert_allclose(measured(other, batches).output["w"], found.output["w"], rtol=1e-5)


def test_tails_get_one_thread_where_batches_run_side_by_side(
    model: Model, batches: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int | None] = []
    tail = Streams.tail

    def spy(self: Streams, outputs: Any, free: Any, threads: int | None) -> Any:
        given.append(threads)
        return tail(self, outputs, free, threads)

    monkeypatch.setattr(Streams, "tail", spy)
    with workers(2):
        measured(model, batches, probes=[0, 1], levels=(0.6,), threads=2)
    assert given and set(given) == {1}
