"""From a layer's error to the model's."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.slim.damage import scaled


def test_goes_through_the_points_and_in_proportion_below() -> None:
    found = scaled(np.array([0.0, 0.01, 0.1, 0.4]), [(0.1, 2.0), (0.4, 10.0)])
    assert found == pytest.approx([0.0, 0.2, 2.0, 10.0])


def test_goes_on_as_steep_as_it_was_and_never_slower_than_in_proportion() -> None:
    steep = scaled(np.array([0.4]), [(0.1, 1.0), (0.2, 4.0)])
    assert steep == pytest.approx([16.0])
    flat = scaled(np.array([0.4]), [(0.1, 1.0), (0.2, 1.1)])
    assert flat == pytest.approx([2.2])


def test_noise_never_makes_a_larger_error_cheaper() -> None:
    found = scaled(np.linspace(0, 1, 50), [(0.1, 2.0), (0.4, 1.0)])
    assert (np.diff(found) >= 0).all()


def test_without_measured_outputs_the_errors_are_the_answer() -> None:
    errors = np.array([0.0, 0.3])
    assert scaled(errors, [(0.1, np.nan)]) == pytest.approx(errors)
