"""How many units go: options, shares, speeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnxprune.allocation.widths import Group as Widths
from onnxprune.allocation.widths import Side, Work
from onnxprune.errors import ModelError
from onnxprune.slim.choose import Choice, evenly, for_share, for_speed, options


@pytest.mark.parametrize(
    ("units", "most", "step", "wanted"),
    [
        (64, 60, 16, (0, 16, 32, 48)),
        (20, 18, 8, (0, 4, 12)),
        (6, 3, 1, (0, 1, 2, 3)),
        (8, 7, 8, (0,)),
    ],
)
def test_options_leave_multiples(units: int, most: int, step: int, wanted: tuple[int, ...]) -> None:
    assert options(units, most, step) == wanted


def test_wide_groups_have_a_limited_number_of_options() -> None:
    found = options(4096, 4000, 1)
    assert len(found) <= 49
    assert found[0] == 0


def two() -> tuple[dict[str, Widths], list[Work]]:
    steps = tuple(range(0, 64, 8))
    cheap, dear = ((np.arange(8) * factor).astype(float) for factor in (1, 5))
    groups = {"a": Widths(64, steps, tuple(cheap)), "b": Widths(64, steps, tuple(dear))}
    return groups, [Work(50.0, (Side(((name, 1.0),)),)) for name in groups]


def test_the_cheaper_group_gives_more() -> None:
    groups, works = two()
    choice = for_share(groups, works, 0.4, "--sparsity 0.4")
    assert choice.counts["a"] > choice.counts["b"]
    assert choice.amount <= 0.6 + 1e-9


def test_evenly_takes_the_same_of_each() -> None:
    groups, works = two()
    choice = evenly(groups, works, 0.5, "--sparsity 0.5")
    assert choice.counts == {"a": 32, "b": 32}


def test_evenly_takes_of_small_groups_too() -> None:
    groups = {name: Widths(8, (0, 4), (0.0, 0.0)) for name in ("b", "a")}
    works = [Work(amount, (Side(((name, 1.0),)),)) for name, amount in (("b", 90.0), ("a", 10.0))]
    assert evenly(groups, works, 0.4, "--sparsity 0.4").counts == {"a": 4, "b": 4}


@pytest.mark.parametrize("pick", [for_share, evenly])
def test_more_than_there_is(pick: Callable[..., Choice]) -> None:
    groups, works = two()
    with pytest.raises(ModelError, match=r"--sparsity 0.95: the units that can go hold 87.5%"):
        pick(groups, works, 0.95, "--sparsity 0.95")


@pytest.mark.parametrize("hidden", [0.0, 30.0])
def test_a_speed_is_tried_and_put_right(hidden: float) -> None:
    groups, works = two()

    def measure(choice: Choice) -> float:  # part of the time is not in the works
        return (100.0 + hidden) / (100.0 * choice.amount + hidden)

    choice, predicted, measured = for_speed(
        lambda share: for_share(groups, works, share, "--budget"), 1.6, measure, "--target-speedup 1.6x"
    )
    assert 1.6 <= measured <= 1.75
    assert predicted == pytest.approx(measured, rel=0.1)
    assert choice.amount < 1 / 1.6 + 1e-9


def test_a_speed_out_of_reach() -> None:
    groups, works = two()
    with pytest.raises(ModelError, match="--target-speedup 20x: "):
        for_speed(
            lambda share: for_share(groups, works, share, "its time"),
            20.0,
            lambda choice: 1 / choice.amount,
            "--target-speedup 20x",
        )
