"""Every way to choose weights, on the samples, through the command line."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.cli import main
from onnxprune.io import load
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.passes.unpack import unpack

QUICK = (
    "--samples",
    "32",
    "--threads",
    "1",
    "--allocation",
    "uniform",
    "--no-refit",
    "--target-runtime",
    "stock",
)


def run(model: Path, data: Path, folder: Path, *words: str, status: int = 0) -> tuple[Any, Model | None, str]:
    """Prune; return the report, the model with plain weights, and what was said on stderr."""
    output, errors, path = io.StringIO(), io.StringIO(), folder / "o.onnx"
    command = [str(model), "--data", str(data), "-o", str(path), "--force", "--json", *words]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        assert main(command) == status, errors.getvalue()
    if status:
        return None, None, errors.getvalue()
    found = load(path)
    unpack(found)
    return json.loads(output.getvalue()), found, errors.getvalue()


def zeros_of(model: Model, name: str) -> np.ndarray:
    layer = next(layer for layer in find_layers(model)[0] if layer.name == name)
    return np.asarray(layer.view.to_matrix(model.array(name)) == 0)


@pytest.mark.parametrize("criterion", ["fisher", "adaptive", "attention"])
def test_every_criterion_prunes_exactly(
    digits_cnn: Path, calibration_npz: Path, tmp_path: Path, criterion: str
) -> None:
    words = (*QUICK, "--sparsity", "0.3", "--criterion", criterion)
    report, found, _ = run(digits_cnn, calibration_npz, tmp_path, *words)
    dense = load(digits_cnn)
    layers, _ = find_layers(dense)
    assert report["zeros"] == round(0.3 * sum(layer.size for layer in layers))
    for layer in layers:
        assert abs(int(zeros_of(found, layer.name).sum()) - 0.3 * layer.size) <= 1
        kept = found.array(layer.name) != 0
        np.testing.assert_array_equal(found.array(layer.name)[kept], dense.array(layer.name)[kept])
    assert report["verdict"] == "ok" or criterion in ("adaptive", "attention")


@pytest.mark.parametrize("criterion", ["obs+fisher", "0.7*wanda+0.3*taylor"])
def test_mixtures(
    digits_transformer: Path, calibration_tokens_npz: Path, tmp_path: Path, criterion: str
) -> None:
    words = ("--samples", "64", "--threads", "1", "--allocation", "uniform", "--sparsity", "0.6")
    report, *_ = run(digits_transformer, calibration_tokens_npz, tmp_path, *words, "--criterion", criterion)
    assert report["sparsity"] == pytest.approx(0.6, abs=1e-4)
    assert {layer["criterion"] for layer in report["layers"]} == {criterion, "magnitude"}
    assert report["verdict"] == "ok"


def test_labels_change_what_is_kept(digits_cnn: Path, samples_dir: Path, tmp_path: Path) -> None:
    with np.load(samples_dir / "digits_test.npz") as data:
        image, label = data["image"][:64], (data["label"][:64] + 1) % 10  # not what the model would say
    np.savez(tmp_path / "few.npz", image=image, label=label)
    words = (*QUICK, "--sparsity", "0.5", "--criterion", "fisher")
    _, own, _ = run(digits_cnn, tmp_path / "few.npz", tmp_path, *words)
    _, task, _ = run(digits_cnn, tmp_path / "few.npz", tmp_path, *words, "--labels", "label")
    assert own is not None and task is not None
    name = find_layers(own)[0][-1].name  # its rows are the ten digits
    assert (zeros_of(own, name) != zeros_of(task, name)).any()
    errors = run(digits_cnn, tmp_path / "few.npz", tmp_path, *words, "--labels", "nothing", status=3)[2]
    assert "no labels 'nothing'" in errors


def test_a_threshold_decides_the_sparsity(digits_cnn: Path, calibration_npz: Path, tmp_path: Path) -> None:
    words = (
        "--samples",
        "64",
        "--threads",
        "1",
        "--no-refit",
        "--criterion",
        "magnitude",
        "--threshold",
        "rel:0.5",
    )
    report, found, _ = run(digits_cnn, calibration_npz, tmp_path, *words)
    dense = load(digits_cnn)
    for layer in find_layers(dense)[0]:
        size = np.abs(dense.array(layer.name))
        np.testing.assert_array_equal(found.array(layer.name) == 0, size < 0.5 * size.mean())
    assert 0.1 < report["sparsity"] < 0.6
    assert not any("wanted" in warning for warning in report["warnings"])


def test_whole_neurons(digits_cnn: Path, calibration_npz: Path, tmp_path: Path) -> None:
    words = (*QUICK, "--sparsity", "0.3", "--criterion", "activation", "--granularity", "neuron")
    report, found, _ = run(digits_cnn, calibration_npz, tmp_path, *words)
    for layer in report["layers"]:
        gone = zeros_of(found, layer["name"])
        if layer["name"] == "head.weight":  # its rows are the ten digits
            assert layer["pattern"] == "unstructured" and not gone.all(-1).any()
            continue
        assert (gone.all(-1) | ~gone.any(-1)).all()
        assert layer["pattern"] == "neuron"
        assert abs(layer["zeros"] - 0.3 * layer["weights"]) <= gone.shape[-1] / 2


def test_neurons_and_weights(digits_transformer: Path, calibration_tokens_npz: Path, tmp_path: Path) -> None:
    words = (*QUICK, "--sparsity", "0.4", "--granularity", "hybrid:0.5", "--criterion", "magnitude")
    report, found, _ = run(digits_transformer, calibration_tokens_npz, tmp_path, *words)
    assert report["sparsity"] == pytest.approx(0.4, abs=1e-4)
    for layer in report["layers"]:
        gone = zeros_of(found, layer["name"])
        rows = int(gone.all(-1).sum())
        if layer["kind"] == "embedding" or layer is report["layers"][-1]:
            assert layer["pattern"] == "unstructured"
        else:
            assert layer["pattern"] == "hybrid:0.5" and rows >= int(0.2 * gone.shape[-2]) > 0
            assert int(gone.sum()) > rows * gone.shape[-1]


def test_chance_is_seeded(digits_cnn: Path, calibration_npz: Path, tmp_path: Path) -> None:
    words = (*QUICK, "--sparsity", "0.3", "--criterion", "magnitude", "--selection", "sample", "--seed")
    masks = []
    for seed in ("1", "1", "2"):
        report, found, _ = run(digits_cnn, calibration_npz, tmp_path, *words, seed)
        assert report["sparsity"] == pytest.approx(0.3, abs=1e-4)
        masks.append(np.concatenate([zeros_of(found, layer["name"]).ravel() for layer in report["layers"]]))
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--criterion", "obs+vibes"), "joined by +"),
        (("--threshold", "0.5"), "abs:X, rel:X, attention:X"),
        (("--threshold", "mean", "--sparsity", "0.5"), "leave one of the two out"),
        (("--granularity", "rows"), "weight, neuron, hybrid"),
    ],
)
def test_mistakes_are_one_line(
    digits_cnn: Path, calibration_npz: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    errors = run(digits_cnn, calibration_npz, tmp_path, *words, status=2)[2]
    assert said in errors and "Traceback" not in errors
