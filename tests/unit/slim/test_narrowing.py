"""The order of one group from what several readers saw; what it costs for real is in test_measure.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.attention.guide import Guide
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.slim.narrowing import Seen, emphasis, narrowing
from onnxprune.slim.readers import find_readers
from onnxprune.solvers.units import Consumer
from onnxprune.structure.find import find_structure
from onnxprune.structure.groups import Group

TEXT = """g (float[N, 6] x) => (float[N, 4] y, float[N, 4] z) {
    a = MatMul(x, w1) h = Relu(a) y = MatMul(h, w2) z = MatMul(h, w3) }"""


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    rng = np.random.default_rng(0)
    sizes = {"w1": (6, 12), "w2": (12, 4), "w3": (12, 4)}
    return Model(build_model(TEXT, {n: rng.normal(size=s).astype(np.float32) for n, s in sizes.items()}))


def seen(model: Model, group: Group, moved: tuple[float, float]) -> list[Seen]:
    """Return what two readers saw; the first reads unit 0 most, the second unit 1."""
    layers, _ = find_layers(model, min_size=1)
    found = []
    for k, reader in enumerate(find_readers([group], layers)):
        Q = np.diag(np.where(np.arange(12) == k, 100.0, 1.0 + np.arange(12)))
        consumer = Consumer(Q, np.eye(12), reader.unit[0], ridge=1e-6)
        found.append(Seen(reader, [consumer], points=[(0.1, moved[k])]))
    return found


@pytest.mark.parametrize(("moved", "last"), [((1.0, 0.0), 0), ((0.0, 1.0), 1)])
def test_the_reader_that_moves_the_output_counts(model: Model, moved: tuple[float, float], last: int) -> None:
    (group,) = find_structure(model, {"x": np.ones((2, 6), np.float32)}).groups
    found = narrowing(group, seen(model, group, moved), "obs")
    assert last not in found.units and 1 - last in found.units
    assert found.damage[0] == 0 and (np.diff(found.damage) > 0).all()


def test_attention_says_how_much_a_unit_counts(model: Model) -> None:
    (group,) = find_structure(model, {"x": np.ones((2, 6), np.float32)}).groups
    rows = np.arange(12, dtype=np.float32)[None]
    assert emphasis(group, Guide(rows={"w1": rows})) == pytest.approx(np.arange(12))
    assert emphasis(group, Guide()) is None
