"""Units that go without a re-fit: costs against the outputs that are lost, and the order against the best."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.solvers import unfitted
from onnxprune.solvers.units import Consumer

RNG = np.random.default_rng(0)


def consumer(unit: list[int]) -> tuple[Consumer, np.ndarray, np.ndarray]:
    X = RNG.normal(size=(200, len(unit))) @ RNG.normal(size=(len(unit), len(unit)))
    W = RNG.normal(size=(5, len(unit)))
    return Consumer(W.T @ W, X.T @ X / len(X), np.array(unit)), W, X


def test_costs_are_the_outputs_that_are_lost() -> None:
    found = [consumer([0, 0, 1, 2, -1, 2]), consumer([2, 1, 0])]
    order = np.array([2, 0, 1])
    costs = unfitted.costs_of([item for item, _, _ in found], order, 3)
    for row, (item, W, X) in zip(costs, found, strict=True):
        for count in range(4):
            gone = np.isin(item.unit, order[:count])
            lost = np.square(X[:, gone] @ W[:, gone].T).sum() / len(X)
            assert row[count] == pytest.approx(lost)


def test_the_next_is_always_the_cheapest_beside_those_that_are_gone() -> None:
    item, _, _ = consumer(list(range(8)))
    order = unfitted.removal_order([item], 8, 2)
    assert len(order.units) == 6
    for count, unit in enumerate(order.units):
        before = order.units[:count]
        others = np.setdiff1d(np.arange(8), before)
        costs = {int(k): unfitted.costs_of([item], np.append(before, k), 8)[0, -1] for k in others}
        assert costs[int(unit)] == pytest.approx(min(costs.values()))


def test_emphasis_keeps_a_unit() -> None:
    item, _, _ = consumer(list(range(4)))
    first = unfitted.removal_order([item], 4).units[0]
    factors = np.where(np.arange(4) == first, 1e6, 1.0)
    assert first not in unfitted.removal_order([item], 4, emphasis=factors).units
