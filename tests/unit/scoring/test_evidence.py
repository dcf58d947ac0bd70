from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.scoring.evidence import Evidence, Slopes


def evidence(groups: int = 2) -> Evidence:
    rng = np.random.default_rng(0)
    X = rng.normal(1, 1, size=(groups, 50, 6))
    W = rng.normal(size=(groups, 4, 6)).astype(np.float32)
    slopes = Slopes(*(rng.random((groups, 4, 6)).astype(np.float32) for _ in range(3)))
    return Evidence(W, X.swapaxes(1, 2) @ X / 50, X.mean(1), slopes)


def test_norms_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(1, 1, size=(2, 50, 6))
    found = evidence()
    np.testing.assert_allclose(found.input_norm, np.sqrt((X**2).mean(1)))
    Y = X @ rng.normal(size=(2, 4, 6)).astype(np.float32).swapaxes(1, 2)
    np.testing.assert_allclose(found.output_norm, np.sqrt((Y**2).mean(1)), rtol=1e-6)


def test_rounding_below_zero_is_zero() -> None:
    found = Evidence(np.ones((1, 1, 2), np.float32), np.diag([1.0, -1e-12])[None])
    np.testing.assert_array_equal(found.input_norm, [[1, 0]])


def test_columns_go_together() -> None:
    order = np.array([3, 0, 5, 1, 2, 4])
    whole, moved = evidence(), evidence().columns(order)
    assert whole.slopes is not None and moved.slopes is not None
    assert whole.mean is not None and moved.mean is not None
    np.testing.assert_array_equal(moved.W, whole.W[:, :, order])
    np.testing.assert_array_equal(moved.mean, whole.mean[:, order])
    np.testing.assert_array_equal(moved.slopes.taylor, whole.slopes.taylor[:, :, order])
    np.testing.assert_array_equal(moved.slopes.second, whole.slopes.second[:, :, order])
    np.testing.assert_allclose(moved.output_norm, whole.output_norm)


def test_missing_gradients_are_an_error() -> None:
    with pytest.raises(UsageError, match="needs gradients"):
        _ = Evidence(np.ones((1, 1, 1), np.float32), np.ones((1, 1, 1))).gradients
