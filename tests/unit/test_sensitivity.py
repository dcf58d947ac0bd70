"""The curves of a model and the plan that follows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import ModelError, UsageError
from onnxprune.recipe import Recipe
from onnxprune.sensitivity import sensitivity

RECIPE = Recipe(samples=64, cache=False, solver="sweep")


@pytest.fixture(scope="module")
def report(digits_cnn: Path, calibration_npz: Path) -> onnxprune.SensitivityReport:
    return sensitivity(digits_cnn, levels=(0.5, 0.9), recipe=RECIPE, data=calibration_npz, sparsity=0.6)


def test_a_curve_for_each_layer(report: onnxprune.SensitivityReport) -> None:
    assert report.levels == (0.5, 0.9) and not report.synthetic and len(report.layers) > 5
    for item in report.layers:
        assert len(item.output) == len(item.error) == 2
        assert 0 < item.error[0] < item.error[1]
    assert np.mean([item.output[0] < item.output[1] for item in report.layers]) > 0.9


def test_the_plan_has_the_sparsity_asked_for(report: onnxprune.SensitivityReport) -> None:
    weights = sum(item.weights for item in report.layers)
    assert sum(item.sparsity * item.weights for item in report.layers) == pytest.approx(0.6 * weights, abs=1)
    assert report.sparsity == pytest.approx(0.6, abs=1 / weights)


def test_the_file_is_a_plan(
    report: onnxprune.SensitivityReport, digits_cnn: Path, calibration_npz: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(report.to_dict()))
    done = onnxprune.prune(
        digits_cnn, tmp_path / "out.onnx", recipe=RECIPE, data=calibration_npz, plan=str(path), format="dense"
    )
    assert {item.name: item.zeros / item.weights for item in done.layers} == {
        item.name: item.sparsity for item in report.layers
    }
    assert not any("was wanted" in warning for warning in done.warnings)


def test_files_are_written_and_not_overwritten(
    digits_cnn: Path, calibration_npz: Path, tmp_path: Path
) -> None:
    plan, plot = tmp_path / "plan.json", tmp_path / "curves.svg"
    for force in (False, True):
        sensitivity(
            digits_cnn, plan, plot=plot, levels=(0.7,), recipe=RECIPE, data=calibration_npz, force=force,
            allocation="error",
        )  # fmt: skip
    assert json.loads(plan.read_text())["layers"] and plot.read_text().startswith("<?xml")
    with pytest.raises(UsageError, match="exists"):
        sensitivity(digits_cnn, plan, levels=(0.7,), recipe=RECIPE, data=calibration_npz, allocation="error")


@pytest.mark.parametrize("levels", [(), (0.7, 0.5), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (float("nan"),)])
def test_levels_that_cannot_be(digits_cnn: Path, levels: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="--levels is"):
        sensitivity(digits_cnn, levels=levels)


def test_allocations_without_curves(digits_cnn: Path) -> None:
    with pytest.raises(UsageError, match="--allocation erk measures no sensitivities"):
        sensitivity(digits_cnn, allocation="erk")
    with pytest.raises(UsageError, match="--plan is what this command writes"):
        sensitivity(digits_cnn, plan="x.json")


def test_nothing_to_prune(digits_cnn: Path, calibration_npz: Path) -> None:
    with pytest.raises(ModelError, match="nothing to prune"):
        sensitivity(digits_cnn, recipe=RECIPE, data=calibration_npz, exclude=("*",))
