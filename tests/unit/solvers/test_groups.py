"""Balanced clusters of rows that agree."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.solvers import groups
from onnxprune.solvers.groups import row_order


def families(count: int, size: int, columns: int = 60, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Saliencies of families of rows that want the same columns, shuffled; and the family of each row."""
    rng = np.random.default_rng(0)
    wanted = (rng.random((count, columns)) < 0.3).astype(np.float32)
    family = rng.permutation(np.repeat(np.arange(count), size))
    return (wanted[family] + noise * rng.random((count * size, columns)).astype(np.float32))[None], family


@pytest.mark.parametrize("rows", [2, 3, 4, 6, 8, 16])
def test_families_come_together(rows: int) -> None:
    saliency, family = families(12, 16 if rows != 6 and rows != 3 else 12)
    order = row_order(saliency, rows, 1, int(0.7 * saliency.size))[0]
    blocks = family[order].reshape(-1, rows)
    assert (blocks == blocks[:, :1]).all()


def retained(saliency: np.ndarray, rows: int, zeros: int) -> float:
    sums = saliency.reshape(-1, rows, saliency.shape[-1]).sum(1)
    kept = sums.size - round(zeros / rows)
    return float(np.sort(sums, axis=None)[::-1][:kept].sum(dtype=np.float64) / saliency.sum(dtype=np.float64))


@pytest.mark.parametrize("rows", [2, 4, 8, 16])
@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_more_saliency_than_neighbours(rows: int, sparsity: float) -> None:
    """Even where rows have nothing in common but chance."""
    rng = np.random.default_rng(1)
    saliency = (rng.normal(size=(192, 96)) ** 2).astype(np.float32)
    zeros = round(sparsity * saliency.size)
    order = row_order(saliency[None], rows, 1, zeros)[0]
    free, neighbours = retained(saliency[order], rows, zeros), retained(saliency, rows, zeros)
    unstructured = retained(saliency, 1, zeros)
    assert free > neighbours + 0.03 * (unstructured - neighbours)


def test_neighbours_that_agree_stay() -> None:
    saliency, family = families(6, 4)
    together = saliency[:, np.argsort(family, kind="stable")]
    order = row_order(together, 4, 1, saliency.size // 2)[0].reshape(-1, 4)
    assert {frozenset(block) for block in order.tolist()} == {
        frozenset(range(k, k + 4)) for k in range(0, 24, 4)
    }


def test_left_over_rows_come_last() -> None:
    saliency = families(5, 4)[0][:, :18]
    order = row_order(saliency, 4, 1, 500)[0]
    assert sorted(order[-2:]) == [16, 17]
    assert sorted(order) == list(range(18))


def test_groups_of_a_convolution_are_ordered_apart() -> None:
    saliency = np.concatenate([families(4, 2)[0], families(4, 2, noise=0.1)[0][:, ::-1]])
    order = row_order(saliency, 2, 1, saliency.size // 2)
    for group in range(2):
        alone = row_order(saliency[group : group + 1], 2, 1, saliency.size // 4)
        np.testing.assert_array_equal(order[group], alone[0])


@pytest.mark.parametrize(
    "saliency",
    [
        np.zeros((1, 8, 5), np.float32),
        np.ones((1, 8, 5), np.float32),
        np.full((1, 8, 5), 1e38, np.float32),
        np.full((1, 8, 5), np.inf, np.float32),
        np.full((1, 8, 5), 1e-40, np.float32),
        np.eye(8, dtype=np.float32)[None] * 1e30,
    ],
)
@pytest.mark.parametrize("zeros", [0, 1, 20, 39, 40, 60])
def test_strange_saliencies_give_an_order(saliency: np.ndarray, zeros: int) -> None:
    order = row_order(saliency, 2, 1, zeros)
    np.testing.assert_array_equal(np.sort(order[0]), np.arange(8))


def test_too_few_rows_stay_in_place() -> None:
    saliency = np.random.default_rng(0).random((2, 4, 6)).astype(np.float32)
    for rows in (1, 4, 8):
        np.testing.assert_array_equal(row_order(saliency, rows, 1, 12), [[0, 1, 2, 3]] * 2)


def test_large_matrices_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    saliency, _ = families(40, 4)
    saliency *= np.random.default_rng(2).choice([1, 10], size=(1, 160, 1)).astype(np.float32)
    monkeypatch.setattr(groups, "LARGEST", 64)
    zeros = round(0.7 * saliency.size)
    order = row_order(saliency, 4, 1, zeros)[0]
    np.testing.assert_array_equal(np.sort(order), np.arange(160))
    assert retained(saliency[0, order], 4, zeros) > retained(saliency[0], 4, zeros)
