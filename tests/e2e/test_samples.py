"""What samples/README.md promises of the two sample models."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import runtime

MODELS = {"digits_cnn": "digits.npz", "digits_transformer": "digits_tokens.npz"}


@pytest.mark.parametrize("name", MODELS)
def test_is_accurate_and_small(samples_dir: Path, name: str) -> None:
    path = samples_dir / f"{name}.onnx"
    accuracy = runpy.run_path(str(samples_dir / "digits_eval.py"))["accuracy"]
    assert accuracy(runtime.session(path, threads=1)) >= 97.0
    assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("name", MODELS)
def test_is_a_good_example(samples_dir: Path, name: str) -> None:
    path = samples_dir / f"{name}.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (entry,) = model.graph.input
    assert entry.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.opset_import[0].version >= 17
    assert {"title", "license", "dataset"} <= {p.key for p in model.metadata_props}
    assert b".py" not in path.read_bytes().replace(b"scripts/make_samples.py", b"")  # no stack traces


@pytest.mark.parametrize(("name", "data"), MODELS.items())
def test_calibration_fits_the_model(samples_dir: Path, name: str, data: str) -> None:
    with np.load(samples_dir / data) as archive:
        feed = dict(archive)
    (logits,) = runtime.session(samples_dir / f"{name}.onnx", threads=1).run(None, feed)
    assert logits.shape == (512, 10)


def test_calibration_and_test_images_are_disjoint(samples_dir: Path) -> None:
    with np.load(samples_dir / "digits.npz") as seen, np.load(samples_dir / "digits_test.npz") as test:
        assert not {i.tobytes() for i in seen["image"]} & {i.tobytes() for i in test["image"]}


def test_tokens_are_those_of_the_images(samples_dir: Path) -> None:
    tokens = runpy.run_path(str(samples_dir / "digits_eval.py"))["tokens"]
    with np.load(samples_dir / "digits.npz") as images, np.load(samples_dir / "digits_tokens.npz") as words:
        np.testing.assert_array_equal(tokens(images["image"]), words["tokens"])
