"""Units that hardly anything reads go first, and the output says what it costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.model import Model
from onnxprune.slim.proxy import narrowings_by_size, unit_sizes
from onnxprune.structure.find import find_structure

TEXT = """g (float[10, N, 6] x) => (float[10, N, 3] y) {
    a, h, c = LSTM<hidden_size=32>(x, W, R) b = Squeeze(a, one)
    d, e = GRU<hidden_size=16>(b, U, S) f = Squeeze(d, one) y = MatMul(f, V) }"""


@pytest.fixture
def proto(build_model: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    sizes = {"W": (1, 128, 6), "R": (1, 128, 32), "U": (1, 48, 32), "S": (1, 48, 16), "V": (16, 3)}
    weights = {n: (rng.normal(size=s) / s[-1] ** 0.5).astype(np.float32) for n, s in sizes.items()}
    for name in ("R", "U"):
        weights[name][:, :, [4, 9, 20]] *= 0.01
    return build_model(TEXT, weights | {"one": np.array([1])})


FEEDS = [{"x": np.random.default_rng(k).normal(size=(10, 8, 6)).astype(np.float32)} for k in range(8)]


def test_units_that_are_hardly_read_go_first(proto: onnx.ModelProto) -> None:
    model = Model(proto)
    structure = find_structure(model, FEEDS[0])
    group = next(g for g in structure.groups if g.units == 32)
    assert set(np.argsort(unit_sizes(model, group))[:3].tolist()) == {4, 9, 20}
    (found,) = narrowings_by_size(model, structure, [group], FEEDS[:2], [None, None])
    assert set(found.units[:3].tolist()) == {4, 9, 20}
    assert found.damage[0] == 0 and (np.diff(found.damage) >= 0).all()
    assert found.damage[3] < 0.1 * found.damage[16]


def test_stacked_recurrent_layers_get_smaller(proto: onnx.ModelProto) -> None:
    report = onnxprune.prune(
        proto, data=FEEDS, pattern="hidden", budget="flops", sparsity=0.3, dry_run=True, threads=1
    )
    assert report.structured is not None
    before, after = report.structured["multiplications"]
    assert after <= 0.7 * before
    assert {group["kind"] for group in report.structured["groups"]} == {"hidden"}
    assert len(report.structured["groups"]) == 2
