"""The order of units and what they cost, seen from the outside: against removing them for real."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.attention.guide import Guide
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.slim.measure import Narrowing, emphasis, measure
from onnxprune.slim.readers import find_readers
from onnxprune.structure.find import find_structure
from onnxprune.structure.groups import Structure
from onnxprune.structure.masking import mask_units

RNG = np.random.default_rng(0)
TEXT = """g (float[N, 6] x) => (float[N, 4] y) {
    a = MatMul(x, w1) b = Add(a, b1) h = Relu(b)
    c = MatMul(h, w2) d = Add(c, b2) k = Relu(d)
    e = MatMul(k, w3) y = Add(e, b3) }"""


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    sizes = (6, 12, 16, 4)
    weights = {}
    for i in range(3):
        weights[f"w{i + 1}"] = RNG.normal(0, sizes[i] ** -0.5, sizes[i : i + 2]).astype(np.float32)
        weights[f"b{i + 1}"] = RNG.normal(0, 0.1, sizes[i + 1]).astype(np.float32)
    weights["w2"][[3, 7]] *= 0.01  # neurons that hardly matter
    weights["w1"][:, 5] = weights["w1"][:, 4]  # and one that another can stand in for
    weights["b1"][5] = weights["b1"][4]
    return Model(build_model(TEXT, weights))


BATCHES = [{"x": RNG.normal(size=(64, 6)).astype(np.float32)} for _ in range(6)]


def narrowings(model: Model, structure: Structure, **options: object) -> list[Narrowing]:
    layers, _ = find_layers(model, min_size=1)
    readers = find_readers(structure.groups, layers)
    targets = {reader.layer.sites[0].input for reader in readers} | {"y"}
    with ArrayStore(2**30) as store:
        streams = Streams(model, None, BATCHES, targets, store)
        return measure(
            model,
            structure.groups,
            readers,
            streams,
            [None] * len(BATCHES),
            [1, 4],
            damping=1e-4,
            seed=0,
            **options,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("criterion", ["obs", "wanda", "magnitude"])
def test_units_that_do_not_matter_go_first(model: Model, criterion: str) -> None:
    found = narrowings(model, find_structure(model, BATCHES[0]), criterion=criterion)
    first = set(found[0].units[:3].tolist())
    assert {3, 7} <= first
    if criterion == "obs":  # the others do not see that one unit can stand in for another
        assert first & {4, 5} == first - {3, 7}
    for item in found:
        assert item.damage[0] == item.error[0] == 0.0
        assert (np.diff(item.damage) >= -1e-12).all()
        assert len(item.damage) == len(item.units) + 1 < item.group.units + 1


def test_other_criteria_order_no_units(model: Model) -> None:
    with pytest.raises(ValueError, match="'fisher' orders no units"):
        narrowings(model, find_structure(model, BATCHES[0]), criterion="fisher")


def test_damage_is_what_the_output_does_at_the_levels(model: Model) -> None:
    structure = find_structure(model, BATCHES[0])
    rng = np.random.default_rng(1)
    x = rng.normal(size=(512, 6)).astype(np.float32)
    dense = runtime.session(model.proto).run(None, {"x": x})[0]
    for item in narrowings(model, structure):
        count = item.group.units // 2
        gone = np.isin(np.arange(item.group.units), item.units[:count])
        masked = mask_units(model, structure, {item.group.name: gone})
        plain = runtime.session(masked.proto).run(None, {"x": x})[0]
        error = float(np.square(plain - dense).sum() / np.square(dense).sum())
        assert 0 < item.damage[count] < error  # the walk re-fits, masking does not


def test_without_outputs_damage_is_the_readers_error(model: Model) -> None:
    for item in narrowings(model, find_structure(model, BATCHES[0]), outputs=False):
        assert item.damage == pytest.approx(item.error)


def test_attention_says_how_much_a_unit_counts(model: Model) -> None:
    group = find_structure(model, BATCHES[0]).groups[0]
    rows = np.arange(12, dtype=np.float32)[None]
    assert emphasis(group, Guide(rows={"w1": rows})) == pytest.approx(np.arange(12))
    assert emphasis(group, Guide()) is None
