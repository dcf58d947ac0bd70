from __future__ import annotations

import numpy as np
import pytest

from onnxprune.kernels.weights import Profile, profile


def blocks(rows: int, columns: int, group: int, density: float = 0.3, seed: int = 0) -> np.ndarray:
    """A weight whose rows share their zeros in groups; the groups are not neighbours."""
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((rows // group, columns)) < density, group, axis=0)
    return (rng.standard_normal((rows, columns)) * mask)[rng.permutation(rows)].astype(np.float32)


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_groups_are_found_wherever_the_rows_are(group: int) -> None:
    weight = blocks(64, 48, group)
    density = np.count_nonzero(weight) / weight.size
    assert profile(weight, "Gemm", True) == Profile(density, group)
    assert profile(np.ascontiguousarray(weight.T), "MatMul", False) == Profile(density, group)
    assert profile(weight.reshape(64, 12, 2, 2), "Conv", False) == Profile(density, group)


def test_large_groups_count_as_16() -> None:
    assert profile(blocks(64, 48, 32), "Gemm", True).group == 16


def test_a_dense_weight_has_no_pattern() -> None:
    assert profile(np.ones((8, 8), np.float32), "MatMul", False) == Profile(1.0, 1)


def test_nothing_left() -> None:
    assert profile(np.zeros((8, 8), np.float32), "MatMul", False) == Profile(0.0, 1)


@pytest.mark.parametrize(
    ("density", "rounded"), [(0.3, 0.3), (0.301, 0.35), (0.29, 0.3), (1.0, 1.0), (0.0, 0.0)]
)
def test_density_is_rounded_up(density: float, rounded: float) -> None:
    assert Profile(density, 1).rounded == pytest.approx(rounded)
