"""A sample that is ready to be made smaller, measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.calibration.data import CalibrationData, load_data
from onnxprune.io import load
from onnxprune.model import Model
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.slim.ready import Ready, prepare


@pytest.fixture(scope="session")
def given(samples_dir: Path) -> tuple[Model, CalibrationData, Recipe]:
    """The transformer of the samples, its data and a quick recipe."""
    recipe = Recipe(
        pattern="structured,layer",
        data=str(samples_dir / "digits_tokens.npz"),
        samples=64,
        threads=1,
        budget="flops",
    )
    model = load(samples_dir / "digits_transformer.onnx")
    return model, load_data(model, recipe), recipe


@pytest.fixture(scope="session")
def ready(given: tuple[Model, CalibrationData, Recipe]) -> Ready:
    """What is known of it."""
    return prepare(*given, NullProgress())
