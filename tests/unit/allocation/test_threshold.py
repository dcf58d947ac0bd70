"""What is below a threshold is counted; without repair, exactly that is what the run removes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune.allocation.threshold import is_below, saliency
from onnxprune.calibration.stats import Moments
from onnxprune.errors import ModelError
from onnxprune.io import load
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.passes.unpack import unpack
from onnxprune.recipe.threshold import Threshold
from onnxprune.scoring.attention import sample_attention
from onnxprune.solvers.layer import Job, dense_matrix, evidence_of
from onnxprune.solvers.patterns import Pattern
from onnxprune.solvers.prune import Method
from tests.unit.finetune.networks import parse

TEXT = """g (int64[N, 4] ids, float[N, 4, 8] x) => (float[N, 4, 6] y) {
    e = Gather(words, ids)  s = Add(e, x)  a = MatMul(s, w1)  b = Add(a, b1)  r = Relu(b)
    h = MatMul(r, w2)  t = Relu(h)  u = MatMul(t, w2)  y = MatMul(u, w3) }"""
SHAPES = {"words": (30, 8), "w1": (8, 12), "b1": (12,), "w2": (12, 12), "w3": (12, 6)}
OPTIONS: dict[str, Any] = {
    "min_size": 16, "refit": False, "criterion": "magnitude", "target_runtime": "stock", "cache": False,
    "threads": 1, "format": "dense",
}  # fmt: skip


@pytest.fixture
def model() -> Model:
    rng = np.random.default_rng(0)
    return parse(TEXT, {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()})


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"ids": rng.integers(0, 30, (32, 4)), "x": rng.normal(size=(32, 4, 8)).astype(np.float32)}


def pruned(model: Model, data: Any, folder: Path, **options: Any) -> tuple[Model, onnxprune.Report]:
    path = folder / "o.onnx"
    report = onnxprune.prune(model, path, data=data, force=True, **{**OPTIONS, **options})
    found = load(path)
    unpack(found)
    return found, report


def test_absolute_magnitude_is_the_textbook(model: Model, data: Any, tmp_path: Path) -> None:
    found, report = pruned(model, data, tmp_path, threshold="abs:0.5")
    zeros = 0
    for name in ("words", "w1", "w2", "w3"):
        W = model.array(name)
        if name != "words":
            np.testing.assert_array_equal(found.array(name), np.where(np.abs(W) < 0.5, 0, W))
        assert int((found.array(name) == 0).sum()) == int((np.abs(W) < 0.5).sum())
        zeros += int((np.abs(W) < 0.5).sum())
    assert report.zeros == zeros
    assert not any("was wanted" in warning for warning in report.warnings)


def test_relative_to_the_mean_of_each_layer(model: Model, data: Any, tmp_path: Path) -> None:
    half, _ = pruned(model, data, tmp_path, threshold="rel:0.5")
    mean, _ = pruned(model, data, tmp_path, threshold="mean")
    for name in ("w1", "w2", "w3"):
        size = np.abs(model.array(name))
        np.testing.assert_array_equal(half.array(name) == 0, size < 0.5 * size.mean())
        np.testing.assert_array_equal(mean.array(name) == 0, size < size.mean())


def test_part_of_what_is_below(model: Model, data: Any, tmp_path: Path) -> None:
    found, _ = pruned(model, data, tmp_path, threshold="mean", removal=0.25)
    for name in ("w1", "w3"):
        size = np.abs(model.array(name))
        count = round(0.25 * int((size < size.mean()).sum()))
        np.testing.assert_array_equal(found.array(name) == 0, size <= np.sort(size, axis=None)[count - 1])


def test_neurons_by_their_mean(model: Model, data: Any, tmp_path: Path) -> None:
    found, _ = pruned(model, data, tmp_path, threshold="mean", granularity="neuron", removal=0.5)
    size = np.abs(model.array("w1")).mean(0)
    below = int((size < size.mean()).sum())
    gone = (found.array("w1") == 0).all(0)
    assert 0 < gone.sum() == round(0.5 * below)
    assert size[gone].max() < size[~gone].min()
    assert not (found.array("w1")[:, ~gone] == 0).any()
    answers = found.array("w3") == 0
    assert answers.any() and not answers.all(0).any()  # of the last layer single weights go


def test_inattentive_features_go_whole(model: Model, data: Any, tmp_path: Path) -> None:
    found, report = pruned(model, data, tmp_path, threshold="attention:0.8", exclude=("w2",))
    gone = {name: (found.array(name) == 0).all(0) for name in ("w1", "w3")}
    x = model.array("words")[data["ids"]] + data["x"]
    X = x.reshape(-1, 8).astype(np.float64)
    moments = Moments.zeros(1, 8)
    rows = X.astype(np.float32)[None]
    moments.add(rows, rows)
    layer = next(layer for layer in find_layers(model, min_size=16)[0] if layer.name == "w1")
    job = Job(layer, dense_matrix(model, layer), moments, 0, Pattern())
    a = sample_attention(evidence_of(job, job.W, Method("magnitude")))[0]
    assert gone["w1"][a < 0.7].all() and not gone["w1"][a > 0.9].any()  # but for the samples held out
    assert 0 < gone["w3"].sum() < 6
    assert report.zeros == sum(int((found.array(name) == 0).sum()) for name in gone)
    assert not (found.array("words") == 0).any()


@pytest.mark.parametrize("options", [{"criterion": "obs", "refit": True}, {"criterion": "wanda"}])
def test_every_criterion_has_a_threshold(model: Model, data: Any, tmp_path: Path, options: Any) -> None:
    few, many = (pruned(model, data, tmp_path, threshold=t, **options)[1] for t in ("rel:0.1", "rel:0.4"))
    assert 0 < few.zeros < many.zeros
    by_name = {layer.name: layer.zeros for layer in many.layers}
    assert all(layer.zeros <= by_name[layer.name] for layer in few.layers)


def test_a_layer_must_keep_something(model: Model, data: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"all 240 weights of 'words' are below the threshold"):
        pruned(model, data, tmp_path, threshold="abs:100")


def test_obs_saliency_is_the_rise_of_the_error(model: Model) -> None:
    """Removing one weight and refitting its row by least squares costs w^2 / [H^-1]_ii."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1, 400, 8)).astype(np.float32)
    X[..., 1] += X[..., 0]
    moments = Moments.zeros(1, 8)
    moments.add(X, X)
    layer = next(layer for layer in find_layers(model, min_size=16)[0] if layer.name == "w1")
    job = Job(layer, dense_matrix(model, layer), moments, 0, Pattern())
    method = Method("obs", damping=1e-8, refit=False)
    found = saliency(job, evidence_of(job, job.W, method), method, Threshold("abs", 1.0))
    w, Y = job.W[0, 3], X[0] @ job.W[0, 3]
    rest = np.delete(X[0], 1, axis=1)
    left = Y - rest @ np.linalg.lstsq(rest, Y, rcond=None)[0]
    assert found[0, 3, 1] == pytest.approx((left**2).mean(), rel=1e-3)
    assert found[0, 3, 1] < w[1] ** 2 * (X[0, :, 1] ** 2).mean()


def test_below_is_strict() -> None:
    score = np.array([[[1.0, 2.0, 3.0]]])
    np.testing.assert_array_equal(is_below(score, Threshold("abs", 2.0)), [[[True, False, False]]])
    np.testing.assert_array_equal(is_below(score, Threshold("rel", 1.0)), [[[True, False, False]]])
    np.testing.assert_array_equal(is_below(score, Threshold("attention", 2.5)), [[[True, True, False]]])
