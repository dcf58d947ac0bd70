"""The order of units and what they cost, seen from the outside: against removing them for real."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.divergence import total_divergence
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.outputs import output_kind
from onnxprune.slim.measure import LEVELS, measure
from onnxprune.slim.narrowing import Narrowing
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
PROBES = [1, 4]


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
            PROBES,
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


@pytest.mark.parametrize("level", LEVELS)
def test_damage_is_what_the_output_does_at_the_levels(model: Model, level: float) -> None:
    def values(of: Model, batches: list[int], *names: str) -> list[np.ndarray]:
        shown = of.copy()
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "y")
        x = np.concatenate([BATCHES[k]["x"] for k in batches])
        return list(runtime.session(shown.proto).run(list(names), {"x": x}))

    (dense,) = values(model, PROBES, "y")
    found = narrowings(model, find_structure(model, BATCHES[0]))
    for item, value, w, b in zip(found, "hk", ("w2", "w3"), ("b2", "b3"), strict=True):
        count = round(level * item.group.units)
        kept = ~np.isin(np.arange(item.group.units), item.units[:count])
        (X,) = values(model, [0, 2, 3, 5], value)
        W, mean = model.array(w), X.mean(0)
        left = np.where(kept[:, None], np.zeros_like(W), 0)
        left[kept] = np.linalg.lstsq((X - mean)[:, kept], (X - mean) @ W, rcond=None)[0]
        smaller = model.copy()
        smaller.set_array(w, left)
        smaller.set_array(b, model.array(b) + mean @ (W - left))
        (moved,) = values(smaller, PROBES, "y")
        kind = output_kind("y", dense, model)
        wanted = total_divergence([kind], [dense], [moved], None) / len(dense)
        assert item.damage[count] == pytest.approx(wanted, rel=0.05, abs=1e-5)  # there is a ridge


@pytest.mark.parametrize("criterion", ["obs", "wanda"])
def test_without_a_refit_costs_are_those_of_masking(model: Model, criterion: str) -> None:
    structure = find_structure(model, BATCHES[0])
    x = np.concatenate([BATCHES[k]["x"] for k in (0, 2, 3, 5)])
    for item, value in zip(
        narrowings(model, structure, criterion=criterion, refit=False), ("d", "y"), strict=True
    ):
        for count in (1, item.group.units // 4, item.group.units // 2):
            gone = np.isin(np.arange(item.group.units), item.units[:count])
            outputs = []
            for shown in (model.copy(), mask_units(model, structure, {item.group.name: gone})):
                shown.graph.output.extend([onnx.ValueInfoProto(name="d")])
                outputs.append(runtime.session(shown.proto).run([value], {"x": x})[0])
            bias = model.array("b2" if value == "d" else "b3")
            error = np.square(outputs[1] - outputs[0]).sum() / np.square(outputs[0] - bias).sum()
            assert item.error[count] == pytest.approx(error, rel=1e-3)


def test_without_outputs_damage_is_the_readers_error(model: Model) -> None:
    for item in narrowings(model, find_structure(model, BATCHES[0]), outputs=False):
        assert item.damage == pytest.approx(item.error)
