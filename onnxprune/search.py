"""Find the largest step that holds, where what a step costs is known only after trying it."""

from __future__ import annotations

from collections.abc import Callable

CLOSED, PATIENCE, TIME = "the bracket closed", "out of patience", "out of time"


def bisect(
    holds: Callable[[int], bool],
    highest: int,
    *,
    patience: int | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> str:
    """Call ``holds`` on steps from 1 to ``highest`` until the largest one that holds is known.

    Exact where everything below a step that holds does so too. A noisy measure may hide a larger step, but
    what was found to hold has been tried itself.

    Args:
        holds: tries a step. Step 0 is never tried: it holds; the caller keeps what it needs.
        highest: largest step to try.
        patience: end after so many steps in a row that did not hold, once one did; None: never.
        expired: whether time is up, asked before each step but the first.

    Returns:
        Why the search ended: :data:`CLOSED`, :data:`PATIENCE` or :data:`TIME`.
    """
    low, high, stale, first = 0, highest + 1, 0, True
    while high - low > 1:
        if not first and expired():
            return TIME
        step, first = (low + high) // 2, False
        if holds(step):
            low, stale = step, 0
        else:
            high, stale = step, stale + 1
        if patience is not None and low and stale >= patience and high - low > 1:
            return PATIENCE
    return CLOSED
