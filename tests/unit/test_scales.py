"""Boxes in pixels beside scores below 1."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.scales import find_cuts


def parts(*sizes: float, axis: int = 1) -> np.ndarray:
    """An output (2, channels, 50), one size for each channel."""
    value = np.random.default_rng(0).normal(size=(2, len(sizes), 50)) * np.array(sizes)[:, None]
    return np.moveaxis(value, 1, axis).astype(np.float32)


@pytest.mark.parametrize(
    ("sizes", "cuts"),
    [
        ((200, 150, 90, 90, 0.01, 0.002, 0.03), (4,)),  # YOLO
        ((200, 150, 90, 90, 0.005, 0.5, 0.8, 0.6), (4, 5)),  # and the coefficients of masks
        ((0.01, 0.02, 200, 150), (2,)),
        ((200, 150, 90, 90, 0.01, 0.0, 0.03), (4,)),  # a class that was never seen
    ],
)
def test_parts_of_different_scales(sizes: tuple[float, ...], cuts: tuple[int, ...]) -> None:
    assert find_cuts(parts(*sizes), [1, 2]) == (1, cuts)
    assert find_cuts(parts(*sizes, axis=2), [1, 2]) == (2, cuts)


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 2, 3, 4, 2, 1),
        (1, 1, 30, 1, 1, 1),  # an outlier in the middle of features
        (1, 2, 0, 0, 0),  # dead channels
        (1, 2, 1e-9, 1e-9),
        (100, 1),  # too few to say
        (0, 0, 0),
    ],
)
def test_features_are_one_part(sizes: tuple[float, ...]) -> None:
    assert find_cuts(parts(*sizes), [1, 2]) is None


def test_only_some_axes_may_hold_parts() -> None:
    value = parts(200, 150, 90, 90, 0.01, 0.02)
    assert find_cuts(value, [2]) is None and find_cuts(value, []) is None
    value[0, 0, 0] = np.inf
    assert find_cuts(value, [1, 2]) is None
