from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.metrics import METRICS, values


def value(name: str, found: object, labels: object) -> float:
    a, b = (np.asarray(x, dtype=np.float32) for x in (found, labels))
    return METRICS[name].total(*METRICS[name].parts(a, b))


def test_spearman_by_hand() -> None:
    # ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 sum d^2 / (n (n^2 - 1)) = 1 - 6 * 4 / 120
    assert value("spearman", [[1], [2], [3], [4], [5]], [[20], [10], [40], [30], [50]]) == pytest.approx(0.8)
    assert value("spearman", [[1], [2], [3]], [[9], [5], [1]]) == pytest.approx(-1.0)


def test_spearman_shares_the_ranks_of_ties() -> None:
    # ranks 1.5 1.5 3 and 1 2 3: covariance 1.5, variances 1.5 and 2
    assert value("spearman", [[7], [7], [9]], [[1], [2], [3]]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))


def test_spearman_of_one_answer_to_everything() -> None:
    assert value("spearman", [[1], [1], [1]], [[1], [2], [3]]) == 0.0
    assert math.isnan(value("spearman", [[1], [np.nan], [1]], [[1], [2], [3]]))


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-5, 5)), min_size=2, max_size=40))
def test_spearman_sees_order_only(rows: list[tuple[int, int]]) -> None:
    a, b = (np.array(x, dtype=np.float64) for x in zip(*rows, strict=True))
    rho = values.spearman(a, b)
    assert -1 - 1e-9 <= rho <= 1 + 1e-9
    assert values.spearman(a**3 + 7, b) == pytest.approx(rho)
    assert values.spearman(b, a) == pytest.approx(rho)
    assert values.spearman(-a, b) == pytest.approx(-rho)


def test_rmse_by_hand() -> None:
    assert value("rmse", [[1, 2], [3, 4]], [[1, 2], [3, 8]]) == pytest.approx(2.0)


def test_cosine_by_hand() -> None:
    # 1, 0 and 1 / sqrt(2)
    found = value("cosine", [[2, 0], [1, 0], [1, 1]], [[3, 0], [0, 5], [0, 1]])
    assert found == pytest.approx((1 + 0 + math.sqrt(0.5)) / 3)
    assert value("cosine", [[0, 0]], [[1, 1]]) == 0.0
