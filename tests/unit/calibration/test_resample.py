"""Against torch's grid_sample, and what mirroring must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from onnxprune.calibration.resample import mirrored_into, resampled


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(-2.5, 2.5),
    st.floats(-1.5, 1.5),
    st.floats(0.1, 2.5),
    st.floats(-1.5, 1.5),
)
def test_two_axes_give_what_torch_gives(
    height: int, width: int, across: float, x: float, along: float, y: float
) -> None:
    image = np.random.default_rng(0).normal(size=(1, 2, height, width))
    found = resampled(image, 3, mirrored_into(np.array([across]), np.array([x]), width))
    found = resampled(found, 2, mirrored_into(np.array([along]), np.array([y]), height))
    maps = torch.tensor([[[across, 0.0, x], [0.0, along, y]]], dtype=torch.float64)
    grid = F.affine_grid(maps, [1, 2, height, width], align_corners=False)
    wanted = F.grid_sample(
        torch.from_numpy(image), grid, padding_mode="reflection", align_corners=False
    ).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_stay_and_each_image_is_read_in_its_own_way(dtype: type) -> None:
    image = np.arange(12, dtype=dtype).reshape(2, 1, 6)
    found = resampled(image, 2, mirrored_into(np.array([1.0, -1.0]), np.zeros(2), 6))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0], image[0])
    np.testing.assert_array_equal(found[1], image[1, :, ::-1])


def test_a_shift_by_whole_pixels_mirrors_at_the_edge() -> None:
    image = np.array([[10.0, 11.0, 12.0, 13.0]])
    places = mirrored_into(np.ones(1), np.array([2 * 2 / 4]), 4)  # two pixels: two halves of the length by 4
    np.testing.assert_allclose(resampled(image, 1, places), [[12.0, 13.0, 13.0, 12.0]])
