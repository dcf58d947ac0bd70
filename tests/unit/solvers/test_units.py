"""Structured OBS: costs and orders against least squares done by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnxprune.solvers.units import Consumer, Elimination, by_size, costs_of, removal_order, without

RNG = np.random.default_rng(0)


def consumer(units: int, block: int, rows: int = 5, *, free: int = 0, weight: float = 1.0) -> Consumer:
    n = units * block + free
    X = RNG.normal(size=(400, n)) @ RNG.normal(size=(n, n))
    W = RNG.normal(size=(rows, n))
    unit = np.concatenate([np.arange(units).repeat(block), np.full(free, -1)])
    return Consumer(W.T @ W, X.T @ X / 400, unit, weight, ridge=1e-9)


def refitted_error(item: Consumer, gone: list[int]) -> float:
    """Squared error of the best re-fit without the columns of ``gone``, by the Schur complement."""
    out = np.isin(item.unit, gone)
    H = item.H + 1e-9 * np.trace(item.H) / len(item.H) * np.eye(len(item.H))
    a, b, c = H[np.ix_(out, out)], H[np.ix_(out, ~out)], H[np.ix_(~out, ~out)]
    schur = a - b @ np.linalg.solve(c, b.T)
    return float(np.trace(item.Q[np.ix_(out, out)] @ schur))


@pytest.mark.parametrize(("block", "free"), [(1, 0), (3, 0), (2, 4)])
def test_costs_are_those_of_least_squares(block: int, free: int) -> None:
    item = consumer(6, block, free=free)
    found = Elimination(item).costs(np.arange(6))
    assert found == pytest.approx([refitted_error(item, [u]) for u in range(6)], rel=1e-6)


def test_removing_together_or_one_by_one_is_the_same() -> None:
    item = consumer(6, 2)
    together, stepwise = Elimination(item), Elimination(item)
    whole = together.remove(np.array([4, 1, 2]))
    parts = sum(stepwise.remove(np.array([u])) for u in (2, 4, 1))
    assert whole == pytest.approx(parts, rel=1e-8)
    assert whole == pytest.approx(refitted_error(item, [1, 2, 4]), rel=1e-6)
    np.testing.assert_allclose(together.Q, stepwise.Q, atol=1e-8 * np.abs(item.Q).max())
    left = np.array([0, 3, 5])
    assert together.costs(left) == pytest.approx(
        [refitted_error(item, [1, 2, 4, u]) - whole for u in left], rel=1e-5
    )


def test_order_is_greedy_over_all_consumers() -> None:
    items = [consumer(6, 1), consumer(6, 4, weight=0.3)]
    order = removal_order(items, 6, least=1)
    gone: list[int] = []
    for step, unit in enumerate(order.units.tolist()):
        prices = {
            u: sum(item.weight * refitted_error(item, [*gone, u]) for item in items)
            for u in range(6)
            if u not in gone
        }
        assert unit == min(prices, key=lambda u: prices[u])
        gone.append(unit)
        assert order.costs[:, step + 1] == pytest.approx(
            [refitted_error(item, gone) for item in items], rel=1e-5
        )


def test_first_unit_is_the_best_and_greedy_is_near_the_best_pair() -> None:
    item = consumer(7, 2)
    order = removal_order([item], 7)
    best = min(refitted_error(item, list(pair)) for pair in combinations(range(7), 2))
    assert order.costs[0, 1] == pytest.approx(min(refitted_error(item, [u]) for u in range(7)), rel=1e-6)
    assert best * (1 - 1e-6) <= order.costs[0, 2] <= 1.5 * best


def test_rounds_of_several_units_end_at_the_joint_cost() -> None:
    item = consumer(24, 1)
    quick = removal_order([item], 24, least=4, rounds=4)
    assert len(quick.units) == 20 == len(set(quick.units.tolist()))
    assert (np.diff(quick.costs[0]) >= -1e-9).all()
    assert quick.costs[0, -1] == pytest.approx(refitted_error(item, quick.units.tolist()), rel=1e-5)
    exact = removal_order([item], 24, least=4)
    assert exact.costs[0, -1] <= 1.3 * quick.costs[0, -1]


def test_a_unit_nobody_reads_goes_first_and_costs_nothing() -> None:
    item = consumer(5, 1)
    unread = Consumer(item.Q[1:, 1:], item.H[1:, 1:], item.unit[1:])
    order = removal_order([unread], 5)
    assert order.units[0] == 0
    assert order.costs[0, 1] == 0.0


@pytest.mark.parametrize("inputs", [False, True])
def test_plain_orders_go_by_columns(inputs: bool) -> None:
    item = consumer(8, 2)
    order = by_size([item], 8, inputs=inputs)
    column = np.diag(item.Q) * (np.diag(item.H) if inputs else 1.0)
    assert order.units.tolist() == np.argsort(column.reshape(8, 2).sum(1))[:7].tolist()
    assert order.costs[0, 3] == pytest.approx(refitted_error(item, order.units[:3].tolist()), rel=1e-5)


def test_costs_of_a_given_order_end_at_the_joint_cost() -> None:
    item, order = consumer(9, 1), np.array([5, 2, 8, 1, 0])
    found = costs_of([item], order, rounds=2)
    assert found[0, 0] == 0.0
    assert found[0, -1] == pytest.approx(refitted_error(item, order.tolist()), rel=1e-6)
    assert found[0, 2] == pytest.approx(refitted_error(item, [5, 2]), rel=1e-6)


def test_weight_without_columns_has_the_error_that_was_promised() -> None:
    item = consumer(5, 2)
    W = RNG.normal(size=(3, 10))
    item = Consumer(W.T @ W, item.H, item.unit, ridge=1e-9)
    gone = np.isin(item.unit, [1, 4])
    found = without(W[None], item.H[None], gone[None], 1e-9)[0]
    assert not found[:, gone].any()
    D = W - found
    assert np.trace(D @ item.H @ D.T) == pytest.approx(refitted_error(item, [1, 4]), rel=1e-4)


def test_emphasis_moves_the_choice_and_not_the_costs() -> None:
    item = consumer(6, 1)
    plain = removal_order([item], 6)
    emphasis = np.ones(6)
    emphasis[plain.units[0]] = 1e6
    found = removal_order([item], 6, emphasis=emphasis)
    assert found.units[0] != plain.units[0]
    assert found.costs[0, 2] == pytest.approx(refitted_error(item, found.units[:2].tolist()), rel=1e-5)
