"""Where the time goes: amounts that sum to the measured whole, tables that fall with the widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.allocation.widths import Group, total
from onnxprune.model import Model
from onnxprune.profiling import op_seconds
from onnxprune.slim import latency
from onnxprune.slim.latency import time_works
from onnxprune.slim.works import Owners
from onnxprune.structure.find import find_structure
from onnxprune.structure.sample import sample

Build = Callable[..., onnx.ModelProto]
RNG = np.random.default_rng(0)
TEXT = """g (float[N, 128] x) => (float[N, 16] y) {
    a = MatMul(x, w1) b = Sigmoid(a) c = MatMul(b, w2) y = Softmax(c) }"""


def weight(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def model(build_model: Build) -> Model:
    return Model(build_model(TEXT, {"w1": weight(128, 512), "w2": weight(512, 16)}))


def by_width(model: Model, node: onnx.NodeProto, *args: Any) -> float:
    """Stands for a measurement: one second, and two in proportion to the weights that are left."""
    return 2.0 * math.prod(args[2]) / math.prod(model.index.tensors[node.input[1]].dims) + 1.0


def test_amounts_are_the_time_of_the_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = {"MatMul": 6.0, "Sigmoid": 3.0, "Softmax": 1.0}
    monkeypatch.setattr(latency, "op_seconds", lambda *_, **__: spent)
    monkeypatch.setattr(latency, "_alone", by_width)
    feeds = {"x": weight(64, 128)}
    structure = find_structure(model, feeds)
    shapes, _ = sample(model, feeds)
    works = time_works(model, Owners(structure.groups, structure.layout), shapes, [feeds], cache=False)
    groups = {g.name: Group(g.units, (0,), (0.0,)) for g in structure.groups}
    assert total(works, groups, {}) == pytest.approx(10.0)
    (name,) = groups
    # Of the products a third stays (the tables say 2 * share + 1), of the rest 512 of 528 elements go by it
    left = total(works, groups, {name: 256})
    assert left == pytest.approx(6 * 2 / 3 + 4 * (256 + 16) / 528)


def test_real_measurements_are_shared_out(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: dict[str, float] = {}

    def profile(*args: Any, **options: Any) -> dict[str, float]:
        spent.update(op_seconds(*args, **options))
        return spent

    monkeypatch.setattr(latency, "op_seconds", profile)
    feeds = {"x": weight(64, 128)}
    structure = find_structure(model, feeds)
    shapes, _ = sample(model, feeds)
    owners = Owners(structure.groups, structure.layout)
    works = time_works(model, owners, shapes, [feeds], cache=False)
    groups = {g.name: Group(g.units, (0,), (0.0,)) for g in structure.groups}
    (name,) = groups
    assert {"MatMul", "Sigmoid", "Softmax"} <= spent.keys()
    assert total(works, groups, {}) == pytest.approx(sum(spent.values()))
    # Below the narrowest width that was timed all falls in proportion, however the timing went
    timed = [work for work in works if work.table is not None]
    eighth, quarter = (total(timed, groups, {name: count}) for count in (448, 384))
    assert eighth == pytest.approx(quarter / 2)


def test_measurements_are_kept(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(latency, "_alone", lambda *args: calls.append(args) or 1e-4)
    feeds = {"x": weight(33, 128)}  # a size of its own, so that nothing is known yet
    structure = find_structure(model, feeds)
    shapes, _ = sample(model, feeds)
    owners = Owners(structure.groups, structure.layout)
    time_works(model, owners, shapes, [feeds])
    first = len(calls)
    time_works(model, owners, shapes, [feeds])
    assert len(calls) == first == 2 * (len(latency.SHARES) + 1)  # each has one side that may get narrower


def test_types_are_measured_apart(build_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(latency, "_alone", lambda *args: calls.append(args) or 1e-4)
    for kind in (np.float32, np.float16):
        text = TEXT.replace("float", np.dtype(kind).name) if kind == np.float16 else TEXT
        made = build_model(text, {"w1": weight(128, 512).astype(kind), "w2": weight(512, 16).astype(kind)})
        model, feeds = Model(made), {"x": weight(35, 128).astype(kind)}
        structure = find_structure(model, feeds)
        shapes, _ = sample(model, feeds)
        time_works(model, Owners(structure.groups, structure.layout), shapes, [feeds])
    assert len(calls) == 4 * (len(latency.SHARES) + 1)


@pytest.mark.parametrize(
    ("text", "weights", "narrowed"),
    [
        ("y = Conv<pads=[1, 1, 1, 1]>(x, w, b)", {"w": weight(16, 8, 3, 3), "b": weight(16)}, True),
        ("y = Conv<group=8>(x, w)", {"w": weight(16, 1, 1, 1)}, False),
        ("y = ConvTranspose(x, w)", {"w": weight(8, 16, 1, 1)}, False),
    ],
)
def test_convolutions(build_model: Build, text: str, weights: dict[str, np.ndarray], narrowed: bool) -> None:
    proto = build_model(f"g (float[1, 8, 6, 6] x) => (float[1, 16, 6, 6] y) {{ {text} }}", weights)
    model = Model(proto)
    shapes, _ = sample(model, {"x": weight(1, 8, 6, 6)})
    axes = latency._axes(model, model.graph.node[0], shapes)
    assert axes == ((1, 0) if narrowed else None)
    if axes is not None:
        node = model.graph.node[0]
        assert latency._alone(model, node, (1, 8, 6, 6), axes, (4, 4)) > 0


@pytest.mark.parametrize(
    ("full", "step", "wanted"),
    [
        (64, 8, (16, 32, 48, 64)),
        (16, 8, (8, 16)),
        (24, 8, (8, 16, 24)),
        (10, 8, (2, 5, 8, 10)),
        (20, 8, (8, 16, 20)),
        (1, 8, (1,)),
    ],
)
def test_widths_are_different_multiples(full: int, step: int, wanted: tuple[int, ...]) -> None:
    assert latency._widths(full, step) == wanted


def test_a_table_knows_the_widths_that_were_timed(
    build_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "op_seconds", lambda *_, **__: {"MatMul": 1.0})
    monkeypatch.setattr(latency, "_alone", by_width)
    model = Model(build_model(TEXT, {"w1": weight(128, 24), "w2": weight(24, 16)}))
    feeds = {"x": weight(4, 128)}
    structure = find_structure(model, feeds)
    shapes, _ = sample(model, feeds)
    works = time_works(model, Owners(structure.groups, structure.layout), shapes, [feeds], cache=False)
    tables = [work.table for work in works if work.table is not None]
    thirds = pytest.approx((1 / 3, 2 / 3, 1))
    assert [table.inputs for table in tables] == [(1.0,), thirds]
    assert [table.outputs for table in tables] == [thirds, (1.0,)]
    assert tables[0].at(1.0, 2 / 3) == pytest.approx((2 * 2 / 3 + 1) / 3)
