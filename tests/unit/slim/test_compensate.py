"""What stays makes up for what goes; what is gone stays gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration.data import load_data
from onnxprune.inmemory import session_of
from onnxprune.io import load
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.progress import NullProgress
from onnxprune.recipe import Recipe
from onnxprune.slim.compensate import compensated, support
from onnxprune.structure.find import find_structure
from onnxprune.structure.masking import mask_units
from onnxprune.structure.removal import remove_units


@pytest.mark.parametrize("name", ["digits_cnn", "digits_transformer"])
def test_refitting_beats_masking_and_removal_equals_it(samples_dir: Path, name: str) -> None:
    archive = samples_dir / ("digits.npz" if name == "digits_cnn" else "digits_tokens.npz")
    model, recipe = load(samples_dir / f"{name}.onnx"), Recipe(data=str(archive), samples=96, threads=1)
    data = load_data(model, recipe)
    structure = find_structure(model, data.batches[0])
    rng = np.random.default_rng(0)
    removed = {g.name: rng.permutation(g.units) < g.units // 2 for g in structure.groups}
    layers, _ = find_layers(model, min_size=1)
    masked = mask_units(model, structure, removed)
    found = compensated(model, model, structure, removed, layers, data, recipe, NullProgress())
    for weight, kept in support(model, structure, removed).items():
        assert not found.array(weight)[~kept].any()
        assert np.array_equal(masked.array(weight) != 0, kept & (model.array(weight) != 0))
    smaller = remove_units(found, structure, removed)
    batch = data.batches[-1]

    def output(model: Model) -> np.ndarray:
        return np.asarray(session_of(model, threads=1).run(None, dict(batch))[0])

    dense, plain, repaired = (output(m) for m in (model, masked, found))
    np.testing.assert_allclose(output(smaller), repaired, rtol=1e-3, atol=1e-3 * np.abs(repaired).max())
    assert np.square(repaired - dense).sum() < 0.5 * np.square(plain - dense).sum()


def test_without_refit_units_are_only_masked(samples_dir: Path) -> None:
    model = load(samples_dir / "digits_cnn.onnx")
    recipe = Recipe(data=str(samples_dir / "digits.npz"), samples=8, refit=False)
    data = load_data(model, recipe)
    structure = find_structure(model, data.batches[0])
    removed = {structure.groups[0].name: np.arange(structure.groups[0].units) < 3}
    found = compensated(model, model, structure, removed, (), data, recipe, NullProgress())
    assert found.to_bytes() == mask_units(model, structure, removed).to_bytes()
