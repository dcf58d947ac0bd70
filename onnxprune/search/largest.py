"""Find the largest step that holds, where what a step costs is known only after trying it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

CLOSED, PATIENCE, TIME = "the bracket closed", "out of patience", "out of time"


def bisect(
    used: Callable[[int], float],
    highest: int,
    *,
    patience: int | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> str:
    """Call ``used`` on steps from 1 to ``highest`` until the largest one that holds is known.

    Exact where everything below a step that holds does so too. A noisy measure may hide a larger step, but
    what was found to hold has been tried itself.

    Between a step that holds and one that does not, the logarithm of what is used is taken for a straight
    line; where two such guesses in a row do not halve what is left, it is halved instead.

    Args:
        used: tries a step and returns the share of what is allowed that it uses: it holds up to 1.
        highest: largest step to try.
        patience: end after so many steps in a row that did not hold, once one did; None: never.
        expired: whether time is up, asked before each step but the first.

    Returns:
        Why the search ended: :data:`CLOSED`, :data:`PATIENCE` or :data:`TIME`.
    """
    low, high, stale, slow = 0, highest + 1, 0, 0
    known: dict[int, float] = {}
    while high - low > 1:
        if known and expired():
            return TIME
        width = high - low
        step = (low + high) // 2 if slow == 2 else _guess(low, high, known)
        known[step] = used(step)
        if known[step] <= 1:
            low, stale = step, 0
        else:
            high, stale = step, stale + 1
        slow = slow + 1 if slow < 2 and 2 * (high - low) > width + 1 else 0
        if patience is not None and low and stale >= patience and high - low > 1:
            return PATIENCE
    return CLOSED


def _guess(low: int, high: int, known: Mapping[int, float]) -> int:
    """Return the step between ``low`` and ``high`` that is likely to be the last one to hold."""
    below, above = known.get(low, 0.0), known.get(high, math.inf)
    if not (below > 0 and above < math.inf):
        return (low + high) // 2
    share = math.log(1 / below) / math.log(above / below)
    return min(max(low + math.floor(share * (high - low)), low + 1), high - 1)
