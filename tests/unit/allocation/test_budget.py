from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.allocation.budget import GRID, Curve, allocate, exact_counts, level

LEVELS = (0.5, 0.7, 0.85)


def curve(size: int, scale: float = 1.0, growth: float = 6.0, highest: float = 0.98) -> Curve:
    return Curve(size, LEVELS, tuple(scale * float(np.exp(growth * s)) for s in LEVELS), highest)


CURVES = st.lists(
    st.builds(
        curve,
        st.integers(1, 5000),
        st.floats(1e-9, 1e6),
        st.floats(0.0, 30.0),
        st.sampled_from([0.98, 0.9, 0.5]),
    ),
    min_size=1,
    max_size=8,
).map(lambda curves: {f"w{i}": c for i, c in enumerate(curves)})


@given(CURVES, st.floats(0, 1))
def test_sums_are_exact_and_limits_hold(curves: dict[str, Curve], share: float) -> None:
    most = sum(int(c.highest * c.size) for c in curves.values())
    zeros = round(share * most)
    counts = allocate(curves, zeros)
    assert list(counts) == list(curves)
    assert sum(counts.values()) == zeros
    assert all(0 <= counts[name] <= c.highest * c.size for name, c in curves.items())


@given(CURVES, st.integers(1, 10**6))
def test_more_than_the_layers_may_take(curves: dict[str, Curve], extra: int) -> None:
    most = {name: int(c.highest * c.size) for name, c in curves.items()}
    assert allocate(curves, sum(most.values()) + extra) == most


@given(CURVES, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_takes_from_nobody(curves: dict[str, Curve], first: float, second: float) -> None:
    most = sum(int(c.highest * c.size) for c in curves.values())
    small, large = (allocate(curves, round(share * most)) for share in sorted((first, second)))
    assert all(large[name] >= small[name] - 1 for name in curves)  # one for the rounding


def test_cheap_layers_get_more() -> None:
    counts = allocate({"dear": curve(1000, 10.0), "middle": curve(1000), "cheap": curve(1000, 0.1)}, 2100)
    assert counts["dear"] < counts["middle"] < counts["cheap"]


def test_equal_layers_get_equal_shares() -> None:
    counts = allocate({name: curve(1000) for name in "abcd"}, 2802)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_large_layers_are_not_punished_for_their_size() -> None:
    """The same cost buys ten times as many zeros in the larger layer."""
    counts = allocate({"small": curve(100), "large": curve(1000)}, 770)
    assert counts["large"] / 1000 > counts["small"] / 100


def test_is_optimal_among_all_choices_on_the_grid() -> None:
    curves = {"a": curve(100, 3.0, 5.0), "b": curve(100, 1.0, 7.0), "c": curve(100, 0.5, 9.0)}
    table = {name: c.on_grid() for name, c in curves.items()}
    best = min(
        table["a"][i] + table["b"][j] + table["c"][210 - i - j]
        for i, j in itertools.product(range(99), repeat=2)
        if 0 <= 210 - i - j < 99
    )
    counts = allocate(curves, 210)
    found = sum(table[name][count] for name, count in counts.items())
    assert found <= best * 1.01


def test_flat_curves_are_pruned_to_the_limit_first() -> None:
    """A layer that does not matter to the output takes all it may."""
    counts = allocate({"idle": Curve(1000, LEVELS, (0.0, 0.0, 0.0)), "busy": curve(1000)}, 1400)
    assert counts == {"idle": 980, "busy": 420}


def test_nothing_to_give() -> None:
    assert allocate({"a": curve(10), "b": curve(10)}, 0) == {"a": 0, "b": 0}
    assert allocate({}, 0) == {}


def test_one_measured_level() -> None:
    curves = {"a": Curve(100, (0.5,), (1.0,)), "b": Curve(100, (0.5,), (2.0,))}
    assert sum(allocate(curves, 100).values()) == 100


@pytest.mark.parametrize("cost", [np.inf, np.nan])
def test_a_layer_whose_pruning_breaks_the_model_is_spared(cost: float) -> None:
    broken = Curve(1000, LEVELS, (0.5, cost, cost))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = allocate({"broken": broken, "fine": curve(1000)}, 1200)
    assert sum(counts.values()) == 1200
    assert counts["broken"] < 600 < counts["fine"]


def test_curve_passes_through_the_measured_points() -> None:
    cost = Curve(100, LEVELS, (1.0, 4.0, 20.0)).on_grid()
    np.testing.assert_allclose(cost[[50, 70, 85]], [1, 4, 20], rtol=1e-9)
    assert cost[0] == 0
    assert (np.diff(cost[:99]) > 0).all()
    assert np.isinf(cost[99]) and np.isfinite(cost[98])
    np.testing.assert_allclose(cost[30] / cost[40], cost[40] / cost[50])  # the first slope goes on


def test_beyond_the_measurements_costs_grow_as_a_power_of_the_density() -> None:
    flat = Curve(100, (0.6, 0.85), (0.004, 0.009)).on_grid()
    power = np.log(9 / 4) / np.log(0.4 / 0.15)
    np.testing.assert_allclose(flat[97], 0.009 * (0.15 / 0.03) ** power)
    assert flat[97] > 0.009 * np.exp((0.97 - 0.85) * np.log(9 / 4) / 0.25)
    early = Curve(100, (0.1, 0.4, 0.5), (1.0, 20.0, 21.0)).on_grid()  # the first slope is the steeper one
    np.testing.assert_allclose(early[51] / early[50], 20 ** (0.01 / 0.3))
    assert (
        flat[86:98] / flat[85:97] < flat[87:99] / flat[86:98]
    ).all()  # each percent costs more than the last


def test_noise_in_the_measurements_does_not_pay() -> None:
    """A cost that falls with the sparsity is noise, and never a reason to prune more."""
    cost = Curve(100, LEVELS, (4.0, 3.0, 5.0)).on_grid()
    assert (np.diff(cost[:99]) >= 0).all()


@given(CURVES, st.floats(0, 1))
def test_with_units_the_sum_of_what_zeros_count_is_met(curves: dict[str, Curve], share: float) -> None:
    unit = {name: 1.0 + 10 * number for number, name in enumerate(curves)}
    whole = sum(item.size * unit[name] for name, item in curves.items())
    most = sum(
        GRID[item.highest + 1e-9 >= GRID].max() * item.size * unit[name] for name, item in curves.items()
    )
    counts = allocate(curves, share * whole, unit)
    found = sum(counts[name] * unit[name] for name in curves)
    assert found == pytest.approx(min(share * whole, most), abs=sum(unit.values()))


def test_units_send_zeros_where_they_count() -> None:
    curves = {"cheap": curve(1000), "dear": curve(1000)}
    even = allocate(curves, 1000)
    counts = allocate(curves, 1000, {"cheap": 0.1, "dear": 1.9})
    assert even["cheap"] == even["dear"] and counts["dear"] > even["dear"] > counts["cheap"]
    assert allocate(curves, 500, {"cheap": 0.0, "dear": 1.0})["cheap"] == 0


def test_largest_remainders_first_and_ties_in_order() -> None:
    curves = {name: Curve(10, (0.5,), (1.0,)) for name in "abc"}
    assert exact_counts({"a": 1.2, "b": 1.9, "c": 1.9}, 4, curves) == {"a": 1, "b": 2, "c": 1}
    assert exact_counts({"a": 1.5, "b": 1.5, "c": 1.5}, 4, curves) == {"a": 2, "b": 1, "c": 1}


@pytest.mark.parametrize("zeros", [0, 1, 5, 14, 27])
def test_any_start_is_corrected(zeros: int) -> None:
    curves = {name: Curve(10, (0.5,), (1.0,)) for name in "abc"}
    counts = exact_counts({"a": 9.0, "b": 4.0, "c": 2.0}, zeros, curves)
    assert sum(counts.values()) == zeros
    assert all(0 <= count <= 9 for count in counts.values())


def test_grid_reaches_every_percent() -> None:
    np.testing.assert_allclose(GRID * 100, np.arange(100))


@given(CURVES, st.floats(0, 1), st.floats(0, 1))
def test_levelled_sparsities_are_nearer_to_the_mean(
    curves: dict[str, Curve], given_share: float, share: float
) -> None:
    curves = {name: Curve(c.size, c.sparsity, c.cost) for name, c in curves.items()}
    most = sum(int(c.highest * c.size) for c in curves.values())
    zeros = allocate(curves, round(given_share * most))
    found = level(curves, zeros, share)
    mean = sum(zeros.values()) / sum(c.size for c in curves.values())
    assert sum(found.values()) == sum(zeros.values())
    for name, c in curves.items():
        assert 0 <= found[name] <= c.highest * c.size
        wanted = zeros[name] + share * (mean * c.size - zeros[name])
        assert found[name] == pytest.approx(wanted, abs=2)


def test_levelling_by_hand() -> None:
    curves = {"a": curve(100), "b": curve(300)}
    assert level(curves, {"a": 90, "b": 150}, 0.0) == {"a": 90, "b": 150}
    assert level(curves, {"a": 90, "b": 150}, 0.5) == {"a": 75, "b": 165}
    assert level(curves, {"a": 90, "b": 150}, 1.0) == {"a": 60, "b": 180}


@pytest.mark.parametrize("cost", [np.inf, np.nan])
def test_levelling_spares_layers_that_break_the_model(cost: float) -> None:
    curves = {"broken": Curve(1000, LEVELS, (0.5, cost, cost)), "a": curve(1000), "b": curve(1000)}
    assert level(curves, {"broken": 0, "a": 800, "b": 400}, 0.5) == {"broken": 0, "a": 700, "b": 500}
    assert level({"broken": curves["broken"]}, {"broken": 7}, 0.5) == {"broken": 7}


def test_levelling_keeps_what_the_zeros_count() -> None:
    curves = {"cheap": curve(1000), "dear": curve(1000), "idle": curve(1000)}
    unit = {"cheap": 1.0, "dear": 3.0, "idle": 0.0}
    found = level(curves, {"cheap": 100, "dear": 900, "idle": 0}, 0.5, unit)
    assert found == {"cheap": 400, "dear": 800, "idle": 0}  # 2,800 before and after
