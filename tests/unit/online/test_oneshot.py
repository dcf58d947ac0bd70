from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxprune.calibration.collect import find_stages
from onnxprune.calibration.stats import Moments
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.online.oneshot import measure_sums, solutions
from onnxprune.plan import method_of
from onnxprune.recipe import Recipe

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1, 200, 16)).astype(np.float32)
RECIPE = Recipe(solver="sweep", min_size=32, allocation="error")


@pytest.fixture
def model(build_model: Callable[..., onnx.ModelProto]) -> Model:
    text = "g (float[N, 16] x) => (float[N, 8] y, float[N, 6] z) { y = MatMul(x, w)  z = MatMul(x, v) }"
    weights = {name: RNG.normal(size=(16, n)).astype(np.float32) for name, n in (("w", 8), ("v", 6))}
    return Model(build_model(text, weights))


def sums() -> Moments:
    found = Moments.zeros(1, 16)
    found.add(X, X, [1] * 200)
    return found


def test_solutions_are_of_the_layers_that_share_the_sums(model: Model) -> None:
    layers, _ = find_layers(model, min_size=32)
    stages = find_stages(model, layers)
    wanted = {"w": (10, 60), "v": (0, 48)}
    found = {
        layer.name: [solution.zeros for solution in solved]
        for layer, solved in solutions(model, stages, [sums()], method_of(RECIPE), wanted, {}, repair=True)
    }
    assert found == {"w": [10, 60], "v": [0, 48]}


def test_curves_are_the_errors_on_the_rows(model: Model) -> None:
    layers, _ = find_layers(model, min_size=32)
    stages = find_stages(model, layers)
    measured = measure_sums(model, stages, [sums()], RECIPE)
    assert measured.sensitivity is not None
    low, high = measured.sensitivity.error["w"]
    assert 0 < low < high < 1
    level = measured.sensitivity.levels[0]
    wanted = {"w": (round(level * 128),), "v": (0,)}
    method = method_of(RECIPE, quick=True)
    solved = dict(
        (layer.name, found[0])
        for layer, found in solutions(model, stages, [sums()], method, wanted, {}, repair=True)
    )
    dense, pruned = (
        X[0] @ W.T for W in (layers[0].view.to_matrix(model.array("w"))[0], solved["w"].weight[0])
    )
    assert np.square(dense - pruned).sum() / np.square(dense).sum() == pytest.approx(low, rel=1e-2)


def test_uniform_needs_no_curves(model: Model) -> None:
    layers, _ = find_layers(model, min_size=32)
    found = measure_sums(model, find_stages(model, layers), [sums()], Recipe(allocation="uniform"))
    assert found.sensitivity is None and set(found.facts) == {layer.name for layer in layers}
