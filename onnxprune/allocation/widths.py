"""Share a budget out among groups of units whose costs interact.

A product's time depends on how many inputs and how many outputs it has left, and those belong to different
groups: what removing a unit saves changes with what went elsewhere. So groups are narrowed step by step,
each time where the damage per amount saved is least as things stand, and then steps are exchanged as long
as that lowers the damage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_EXCHANGES = 200


@dataclass(frozen=True)
class Table:
    """Relative time of a product, measured at a few shares of its inputs and outputs.

    Attributes:
        inputs: (i,) increasing, the last one is 1.
        outputs: (o,) likewise.
        relative: (i, o) time at [share of the inputs, share of the outputs], 1 at the end.
    """

    inputs: tuple[float, ...]
    outputs: tuple[float, ...]
    relative: tuple[tuple[float, ...], ...]

    def at(self, inputs: float, outputs: float) -> float:
        """Return the time between the entries, as straight lines go; below the first one in proportion."""
        small = min(1.0, inputs / self.inputs[0]) * min(1.0, outputs / self.outputs[0])
        found = 0.0
        for i, a in _place(self.inputs, inputs):
            found += a * sum(b * self.relative[i][j] for j, b in _place(self.outputs, outputs))
        return small * found


def _place(shares: Sequence[float], share: float) -> tuple[tuple[int, float], ...]:
    """Return the entries on both sides of a share, and how much each counts."""
    k = int(np.searchsorted(shares, share))
    if k == 0 or k == len(shares):
        return ((min(k, len(shares) - 1), 1.0),)
    part = (share - shares[k - 1]) / (shares[k] - shares[k - 1])
    return ((k - 1, 1.0 - part), (k, part))


@dataclass(frozen=True)
class Side:
    """One axis of a tensor: which groups own how much of it.

    Attributes:
        parts: (group, share of the axis), the rest of the axis stays whatever happens.
    """

    parts: tuple[tuple[str, float], ...] = ()

    def left(self, shares: Mapping[str, float]) -> float:
        """Return the share of the axis that is left when ``shares`` of the groups' units are."""
        return 1.0 - sum(part * (1.0 - shares[group]) for group, part in self.parts)


@dataclass(frozen=True)
class Work:
    """Something the model does, or holds, whose amount falls as groups get narrower.

    Attributes:
        amount: seconds, multiplications or weights of the dense model.
        sides: the amount is in proportion to what is left of each.
        table: measured times in place of that for the first two sides, which are (inputs, outputs).
    """

    amount: float
    sides: tuple[Side, ...] = ()
    table: Table | None = None

    @property
    def groups(self) -> set[str]:
        """Which groups it depends on."""
        return {group for side in self.sides for group, _ in side.parts}

    def at(self, shares: Mapping[str, float]) -> float:
        """Return the amount when ``shares`` of the groups' units are left."""
        left = [side.left(shares) for side in self.sides]
        if self.table is not None:
            return self.amount * self.table.at(left[0], left[1]) * math.prod(left[2:])
        return self.amount * math.prod(left)


@dataclass(frozen=True)
class Group:
    """Units that may go.

    Attributes:
        units: how many there are.
        options: numbers of units that may be removed, increasing from 0.
        damage: (len(options),) what each does, 0 at the start; any unit that adds over groups.
    """

    units: int
    options: tuple[int, ...]
    damage: tuple[float, ...]


def total(works: Sequence[Work], groups: Mapping[str, Group], removed: Mapping[str, int]) -> float:
    """Return the amount of all works when so many units of each group are gone."""
    shares = {name: 1.0 - removed.get(name, 0) / group.units for name, group in groups.items()}
    return sum(work.at(shares) for work in works)


def narrow(groups: Mapping[str, Group], works: Sequence[Work], limit: float) -> dict[str, int]:
    """Return how many units of each group to remove so that the works amount to ``limit`` at most.

    Args:
        groups: what may go.
        works: what it saves.
        limit: in the works' unit. Where it cannot be reached, all groups get their last option.
    """
    state = _State(groups, works)
    while state.amount > limit and (step := state.best_step()):
        state.move(*step)
    _widen(state, limit)
    for _ in range(_EXCHANGES):
        if not _exchange(state, limit):
            break
    return {name: group.options[state.at[name]] for name, group in groups.items()}


class _State:
    """Where each group stands, and what the works amount to there."""

    def __init__(self, groups: Mapping[str, Group], works: Sequence[Work]) -> None:
        self.groups, self.works = groups, works
        self.at = dict.fromkeys(groups, 0)
        self.shares = dict.fromkeys(groups, 1.0)
        self.touching: dict[str, list[int]] = {name: [] for name in groups}
        for k, work in enumerate(works):
            for name in work.groups:
                self.touching[name].append(k)
        self.amounts = [work.at(self.shares) for work in works]
        self._steps: dict[str, tuple[float, int]] = {}

    @property
    def amount(self) -> float:
        return sum(self.amounts)

    def share(self, name: str, option: int) -> float:
        group = self.groups[name]
        return 1.0 - group.options[option] / group.units

    def saved(self, name: str, option: int) -> float:
        """Return by how much the amount falls when one group goes to another option."""
        before = self.shares[name]
        self.shares[name] = self.share(name, option)
        after = sum(self.works[k].at(self.shares) for k in self.touching[name])
        self.shares[name] = before
        return sum(self.amounts[k] for k in self.touching[name]) - after

    def move(self, name: str, option: int) -> None:
        self.at[name], self.shares[name] = option, self.share(name, option)
        for k in self.touching[name]:
            self.amounts[k] = self.works[k].at(self.shares)
        for other in self._near(name):
            self._steps.pop(other, None)

    def _near(self, name: str) -> set[str]:
        return {name}.union(*(self.works[k].groups for k in self.touching[name]))

    def best_step(self) -> tuple[str, int] | None:
        """Return the step, of any length, that does the least damage per amount saved."""
        for name in self.groups.keys() - self._steps.keys():
            self._steps[name] = self._best_of(name)
        best = min(self.groups, key=lambda item: self._steps[item][0], default="")
        if not best or not math.isfinite(self._steps[best][0]):
            return None
        return best, self._steps[best][1]

    def _best_of(self, name: str) -> tuple[float, int]:
        group, now = self.groups[name], self.at[name]
        found = (math.inf, now)
        for option in range(now + 1, len(group.options)):
            saved = self.saved(name, option)
            if saved > 0:
                price = (group.damage[option] - group.damage[now]) / saved
                if price < found[0]:
                    found = (price, option)
        return found

    def damage(self, name: str, option: int) -> float:
        """Return what going to another option changes the damage by."""
        damage = self.groups[name].damage
        return damage[option] - damage[self.at[name]]


def _widen(state: _State, limit: float) -> None:
    """Take back steps that the limit does not need, the most damaging first."""
    while True:
        found = [
            (state.damage(name, option), name, option)
            for name, option in _backward(state)
            if state.damage(name, option) < 0 and state.amount - state.saved(name, option) <= limit
        ]
        if not found:
            return
        _, name, option = min(found)
        state.move(name, option)


def _backward(state: _State) -> Iterator[tuple[str, int]]:
    for name, now in state.at.items():
        for option in range(now):
            yield name, option


def _exchange(state: _State, limit: float) -> bool:
    """Widen one group and narrow another where that lowers the damage within the limit; False if nowhere."""
    best: tuple[float, str, int, str, int] | None = None
    for name, now in list(state.at.items()):
        if not now:
            continue
        relief = state.damage(name, now - 1)
        state.move(name, now - 1)
        for other, place in state.at.items():
            for option in range(place + 1, len(state.groups[other].options)):
                change = relief + state.damage(other, option)
                if other == name or change >= -1e-12:
                    break
                if state.amount - state.saved(other, option) <= limit:
                    if best is None or change < best[0]:
                        best = (change, name, now - 1, other, option)
                    break
        state.move(name, now)
    if best is None:
        return False
    _, name, back, other, option = best
    state.move(name, back)
    state.move(other, option)
    return True
