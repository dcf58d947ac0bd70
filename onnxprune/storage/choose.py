"""Which form stores which weight: the smallest file, then some of it traded for faster loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The forms that load faster may make the packed weights larger by this much in all. At 70 % zeros
# gaps4 takes 2.4 to 6 % more than bitmap, by how evenly the zeros lie, and half of its load time.
SIZE_MARGIN = 0.025


@dataclass(frozen=True)
class Candidate:
    """A weight and what each form would make of it.

    Attributes:
        elements: of the dense weight.
        sizes: form -> bytes.
    """

    elements: int
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class _Trade:
    """A faster form for one weight: the time it saves and the bytes it costs."""

    name: str
    form: str
    saved: int
    extra: int


def choose(
    candidates: Mapping[str, Candidate], load_ns: Mapping[str, int], margin: float = SIZE_MARGIN
) -> dict[str, str]:
    """Return weight -> form.

    Every weight gets its smallest form; then faster ones save as much time as they can while all
    weights together grow by at most ``margin``. That is a knapsack: filled by what costs least for its
    time, once as it comes and once around the greatest saving (a table can hold half of a model); the
    better one counts. Ties go by name, so the result is reproducible.

    Args:
        candidates: the weights.
        load_ns: form -> time to load it, per element.
        margin: share by which the weights may grow.
    """
    chosen = {name: min(c.sizes, key=lambda f: (c.sizes[f], load_ns[f])) for name, c in candidates.items()}
    budget = margin * sum(c.sizes[chosen[name]] for name, c in candidates.items())
    trades = []
    for name, candidate in candidates.items():
        found = _trades(name, candidate, chosen[name], load_ns)
        if found:
            trades.append(min(found, key=_price))
    trades.sort(key=_price)
    fitting = [trade for trade in trades if trade.extra <= budget]
    greatest = sorted(fitting, key=lambda t: (-t.saved, t.name))[:1]
    fillings = [_fill(trades, budget), _fill(greatest + [t for t in trades if t not in greatest], budget)]
    for trade in max(fillings, key=lambda filling: sum(trade.saved for trade in filling)):
        chosen[trade.name] = trade.form
    return chosen


def _trades(name: str, candidate: Candidate, chosen: str, load_ns: Mapping[str, int]) -> list[_Trade]:
    """All faster forms of one weight."""
    found = []
    for form, size in candidate.sizes.items():
        saved = candidate.elements * (load_ns[chosen] - load_ns[form])
        if saved > 0:
            found.append(_Trade(name, form, saved, size - candidate.sizes[chosen]))
    return found


def _price(trade: _Trade) -> tuple[float, str, str]:
    return (trade.extra / trade.saved, trade.name, trade.form)


def _fill(trades: list[_Trade], budget: float) -> list[_Trade]:
    """Take trades in order as long as each fits into what is left."""
    taken = []
    for trade in trades:
        if trade.extra <= budget:
            budget -= trade.extra
            taken.append(trade)
    return taken
