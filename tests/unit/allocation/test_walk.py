"""One pass over the dense model: every stage once, in order, with what its inputs are like."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.allocation.walk import add_tied, all_stages, walk
from onnxprune.attention.guide import Guide
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer, find_layers
from onnxprune.model import Model

TEXT = """g (int64[N] i) => (float[N, 8] y) {
    e = Gather(table, i)  a = MatMul(e, w)  r = Relu(a)  b = MatMul(r, w)  y = MatMul(b, v) }"""
RNG = np.random.default_rng(0)
WEIGHTS = {
    "table": RNG.normal(size=(30, 8)).astype(np.float32),
    "w": RNG.normal(size=(8, 8)).astype(np.float32),
    "v": RNG.normal(size=(8, 8)).astype(np.float32),
}
IDS = [RNG.integers(0, 30, 6), RNG.integers(0, 30, 9)]


@pytest.fixture(scope="module")
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    return Model(build_model(TEXT, WEIGHTS))


@pytest.fixture(scope="module")
def layers(model: Model) -> tuple[Layer, ...]:
    return find_layers(model, min_size=16)[0]


def seen(model: Model, layers: tuple[Layer, ...], **options: object) -> list[tuple[str, int, object]]:
    values = {stage.value for stage in all_stages(model, layers)}
    with ArrayStore(2**20) as store:
        streams = Streams(model, None, [{"i": ids} for ids in IDS], values, store, 1)
        found = walk(model, layers, streams, [None, None], seed=0, **options)  # type: ignore[arg-type]
        return [(stage.layers[0].name, stage.site, what) for stage, what in found]


def test_every_use_once_and_none_before_what_it_reads(model: Model, layers: tuple[Layer, ...]) -> None:
    found = seen(model, layers)
    assert [(name, site) for name, site, _ in found] == [("table", 0), ("w", 0), ("w", 1), ("v", 0)]
    rows = WEIGHTS["table"][np.concatenate(IDS)]
    np.testing.assert_array_equal(found[0][2], np.bincount(np.concatenate(IDS), minlength=30))
    for x, (_, _, moments) in zip((rows, np.maximum(rows @ WEIGHTS["w"], 0)), found[1:3], strict=True):
        assert isinstance(moments, Moments) and moments.n == 15
        np.testing.assert_allclose(moments.H[0], x.T @ x, rtol=1e-4, atol=1e-4)


def test_some_batches_only(model: Model, layers: tuple[Layer, ...]) -> None:
    found = seen(model, layers, batches=[1])
    assert found[0][2].sum() == 15  # type: ignore[attr-defined]  # how often rows are read is of all
    assert all(moments.n == 9 for _, _, moments in found[1:])  # type: ignore[attr-defined]


def test_tokens_that_count_more(model: Model, layers: tuple[Layer, ...]) -> None:
    weights = [np.full((len(ids), 1), 2.0, np.float32) for ids in IDS]
    found = {(name, site): what for name, site, what in seen(model, layers, guide=Guide({"v": weights}))}
    assert found["v", 0].n == 30 and found["w", 0].n == 15  # type: ignore[attr-defined]


def test_later_uses_add_up(model: Model, layers: tuple[Layer, ...]) -> None:
    tied: dict[str, Moments] = {}
    stages = all_stages(model, layers)
    for stage, (_, _, what) in zip(stages, seen(model, layers), strict=True):
        add_tied(tied, stage, what)  # type: ignore[arg-type]
        add_tied(tied, stage, what)  # type: ignore[arg-type]
    assert list(tied) == ["w"] and tied["w"].n == 30
