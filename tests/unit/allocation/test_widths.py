"""Widths of groups that interact, against trying everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onnxprune.allocation.widths import Group, Side, Table, Work, narrow, total


def chain(seed: int, count: int) -> tuple[dict[str, Group], list[Work]]:
    """A chain of products: each reads one group and makes the next one."""
    rng = np.random.default_rng(seed)
    groups = {}
    for k in range(count):
        options = tuple(range(0, 64, 16))
        growth = rng.uniform(1, 4) * (np.arange(len(options)) / 4) ** rng.uniform(1.2, 3)
        groups[f"g{k}"] = Group(64, options, tuple(growth.tolist()))
    works = [Work(5.0)]
    for k in range(count + 1):
        sides = [Side(((f"g{j}", 1.0),)) if 0 <= j < count else Side() for j in (k - 1, k)]
        works.append(Work(float(rng.uniform(1, 10)), tuple(sides)))
    return groups, works


def best(groups: dict[str, Group], works: list[Work], limit: float) -> float:
    found = []
    for places in product(*(range(len(group.options)) for group in groups.values())):
        removed = {n: g.options[p] for (n, g), p in zip(groups.items(), places, strict=True)}
        if total(works, groups, removed) <= limit:
            found.append(sum(g.damage[p] for g, p in zip(groups.values(), places, strict=True)))
    return min(found)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_near_the_best_of_all(seed: int, share: float) -> None:
    groups, works = chain(seed, 4)
    limit = share * total(works, groups, {})
    removed = narrow(groups, works, limit)
    assert total(works, groups, removed) <= limit
    damage = sum(group.damage[group.options.index(removed[name])] for name, group in groups.items())
    assert damage <= 1.12 * best(groups, works, limit)


def test_nothing_goes_when_the_limit_is_held_already() -> None:
    groups, works = chain(0, 3)
    assert narrow(groups, works, total(works, groups, {})) == dict.fromkeys(groups, 0)


def test_a_limit_out_of_reach_takes_all_that_saves_something() -> None:
    groups, works = chain(0, 3)
    assert narrow(groups, works, 0.0) == dict.fromkeys(groups, 48)


def test_what_saves_nothing_stays() -> None:
    groups = {"a": Group(8, (0, 4), (0.0, 1.0)), "b": Group(8, (0, 4), (0.0, 0.0))}
    works = [Work(10.0, (Side((("a", 1.0),)),))]
    assert narrow(groups, works, 5.0) == {"a": 4, "b": 0}


def test_steps_may_pass_over_options_that_save_nothing() -> None:
    # A kernel that works on blocks of eight is no faster until a whole block is gone
    groups = {"a": Group(32, (0, 8, 16, 24), (0.0, 0.1, 0.2, 0.3)), "b": Group(32, (0, 16), (0.0, 5.0))}
    table = Table(
        (0.25, 0.5, 0.75, 1.0), (0.25, 0.5, 0.75, 1.0), ((0.5,) * 4, (0.5,) * 4, (1.0,) * 4, (1.0,) * 4)
    )
    works = [Work(10.0, (Side((("a", 1.0),)), Side()), table), Work(10.0, (Side((("b", 1.0),)),))]
    assert narrow(groups, works, 15.0) == {"a": 16, "b": 0}


def test_a_side_with_several_owners_shrinks_in_proportion() -> None:
    side = Side((("a", 0.5), ("b", 0.25)))
    assert side.left({"a": 0.5, "b": 1.0}) == pytest.approx(0.75)
    assert Work(8.0, (side, side)).at({"a": 0.5, "b": 0.0}) == pytest.approx(8 * 0.5 * 0.5)


def test_table_interpolates_and_goes_on_below_its_first_entry() -> None:
    table = Table((0.5, 1.0), (0.5, 1.0), ((0.3, 0.6), (0.6, 1.0)))
    assert table.at(1.0, 1.0) == pytest.approx(1.0)
    assert table.at(0.5, 0.5) == pytest.approx(0.3)
    assert table.at(0.75, 1.0) == pytest.approx(0.8)
    assert table.at(0.25, 1.0) == pytest.approx(0.3)
