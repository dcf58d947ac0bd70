"""How many units of each group go: the least damage for a share of some amount, or for a speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.widths import Group as Widths
from onnxprune.allocation.widths import Work, narrow, total
from onnxprune.errors import ModelError
from onnxprune.recipe.structured import ROUNDED
from onnxprune.slim.narrowing import Narrowing

ROUND, SMALL = 8, 32
MOST_OPTIONS = 48  # widths that are considered for a group
_TRIALS = 4  # of a speed that is asked for
_NEAR = 0.03


@dataclass(frozen=True)
class Choice:
    """How many units of each group go.

    Attributes:
        counts: group name -> units to remove.
        amount: share that is left of what was asked about, by the works.
    """

    counts: dict[str, int]
    amount: float


def widths(narrowings: Sequence[Narrowing], round_to: int | None) -> dict[str, Widths]:
    """Return the options of each group: what is left is a multiple of ``round_to``.

    Heads go one by one. By default the multiple is 8, and 4 in groups of less than 32 units.
    """
    found = {}
    for item in narrowings:
        step = 1
        if item.group.kind in ROUNDED:
            step = round_to or (ROUND if item.group.units >= SMALL else ROUND // 2)
        counts = options(item.group.units, len(item.units), step)
        found[item.group.name] = Widths(
            item.group.units, counts, tuple(float(item.damage[count]) for count in counts)
        )
    return found


def options(units: int, most: int, step: int) -> tuple[int, ...]:
    """Return the numbers of units that may go so that a multiple of ``step`` is left, 0 among them.

    >>> options(20, 18, 8), options(6, 5, 1)
    ((0, 4, 12), (0, 1, 2, 3, 4, 5))
    """
    left = range((units - 1) // step * step, 0, -step)
    counts = [units - kept for kept in left if units - kept <= most]
    stride = -(-len(counts) // MOST_OPTIONS)
    return (0, *counts[::stride]) if counts else (0,)


def for_share(groups: Mapping[str, Widths], works: Sequence[Work], share: float, what: str) -> Choice:
    """Choose for an amount: ``share`` of it goes.

    Args:
        groups: see :func:`widths`.
        works: weights or multiplications.
        share: of the works' sum.
        what: the option that asks, for the message.

    Raises:
        ModelError: when not so much can go.
    """
    counts = narrow(groups, works, (1.0 - share) * total(works, groups, {}))
    return _enough(groups, works, counts, share, what)


def _enough(
    groups: Mapping[str, Widths], works: Sequence[Work], counts: dict[str, int], share: float, what: str
) -> Choice:
    """Return the choice of these numbers; raises ModelError when they take less than ``share``."""
    whole = total(works, groups, {})
    left = total(works, groups, counts) / whole if whole else 1.0
    if left > 1.0 - share + 1e-6:
        raise ModelError(
            f"{what}: the units that can go hold {1 - left:.1%} of it, {share:.1%} was asked for",
            "ask for less, name more kinds in --pattern, or lower --round-to",
        )
    return Choice(counts, left)


def evenly(groups: Mapping[str, Widths], works: Sequence[Work], share: float, what: str) -> Choice:
    """Choose the same share of the units of each group, whatever damage it does; see :func:`for_share`."""
    limit = (1.0 - share) * total(works, groups, {})
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if total(works, groups, _even(groups, middle)) > limit:
            low = middle
        else:
            high = middle
    return _enough(groups, works, _even(groups, high), share, what)


def _even(groups: Mapping[str, Widths], share: float) -> dict[str, int]:
    return {
        name: min(group.options, key=lambda count: abs(count - share * group.units))
        for name, group in groups.items()
    }


def for_speed(
    choose: Callable[[float], Choice], wanted: float, measure: Callable[[Choice], float], option: str
) -> tuple[Choice, float, float]:
    """Choose for a speed: the choice is tried, and what the works misjudge is put right.

    Args:
        choose: share of the time to save, by the works -> choice.
        wanted: how many times faster the model is to be.
        measure: how many times faster the model is with a choice.
        option: that asks, for the message.

    Returns:
        The choice, the speed predicted for it, and the measured one.

    Raises:
        ModelError: when the speed cannot be reached.
    """
    bias = 1.0  # of the measured speed over the one by the works
    best: tuple[Choice, float, float] | None = None
    for _ in range(_TRIALS):
        try:
            choice = choose(1.0 - min(1.0, bias / wanted))
        except ModelError as error:
            if best is not None:
                break
            raise ModelError(f"{option}: {error}", error.hint) from error
        measured = measure(choice)
        if best is None or _miss(measured, wanted) < _miss(best[2], wanted):
            best = (choice, bias / choice.amount, measured)
        if wanted <= measured <= wanted * (1 + _NEAR):
            break
        bias = measured * choice.amount
    assert best is not None
    return best


def _miss(measured: float, wanted: float) -> float:
    """Return how far off a speed is; too slow is worse than too fast."""
    return (wanted / measured - 1) * 3 if measured < wanted else measured / wanted - 1


def masks(narrowings: Sequence[Narrowing], counts: Mapping[str, int]) -> dict[str, NDArray[np.bool_]]:
    """Return group name -> True for each unit that goes; groups that stay whole are left out."""
    found = {}
    for item in narrowings:
        count = counts.get(item.group.name, 0)
        if count:
            gone = np.zeros(item.group.units, dtype=bool)
            gone[item.units[:count]] = True
            found[item.group.name] = gone
    return found
