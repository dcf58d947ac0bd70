"""Compare sessions that do the same work: each takes turns, and its fastest turn counts.

Other programs only ever make a turn slower, so the minimum of short turns is what the machine can do. With
one thread the processor's clock is read, which stands still while another program runs; with several, the
wall's, unless the machine is so busy that it would measure the neighbours.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxprune.runtime import cpu_count

TURN_SECONDS = 3e-4
LONG_SECONDS = 5e-3  # in such a run cold caches count for little
ROUNDS = 11
MAX_RUNS = 200
QUIET = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}

Feed = Mapping[str, Any]


def clock_of(threads: int) -> Callable[[], float]:
    """Return the clock to compare sessions of this many threads with."""
    if threads == 1 or busy():
        return time.process_time
    return time.perf_counter


def busy() -> bool:
    """Whether other programs want more processors than there are."""
    try:
        return os.getloadavg()[0] > cpu_count() + 0.5
    except (OSError, AttributeError):  # not every system keeps a load average
        return False


def best_times(
    sessions: Sequence[Any],
    feeds: Sequence[Feed],
    threads: int,
    *,
    seconds: float = math.inf,
    rounds: int = ROUNDS,
) -> list[float]:
    """Return for each session the seconds of its fastest turn.

    Args:
        sessions: with the same inputs.
        feeds: a run of every feed is one unit of work.
        threads: of the sessions.
        seconds: rounds end after this long, but three are made.
        rounds: turns of each session at most.
    """
    clock = clock_of(threads)
    repeats = [_repeats(session, feeds, clock) for session in sessions]  # 0: one run is a turn
    best = [math.inf] * len(sessions)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for turn in range(rounds):
            if turn >= 3 and time.perf_counter() - begin > seconds:
                break
            order = range(len(sessions)) if turn % 2 == 0 else reversed(range(len(sessions)))
            for i in order:
                best[i] = min(best[i], _turn(sessions[i], feeds, repeats[i], clock))
    finally:
        if collecting:
            gc.enable()
    return best


def _repeats(session: Any, feeds: Sequence[Feed], clock: Callable[[], float]) -> int:
    _work(session, feeds)  # the first run plans its memory
    begin = clock()
    _work(session, feeds)
    once = clock() - begin
    return 0 if once > LONG_SECONDS else max(1, min(MAX_RUNS, math.ceil(TURN_SECONDS / max(once, 1e-7))))


def _turn(session: Any, feeds: Sequence[Feed], repeats: int, clock: Callable[[], float]) -> float:
    if repeats:
        _work(session, feeds)  # pays for the caches that the others emptied
    repeats = max(repeats, 1)
    begin = clock()
    for _ in range(repeats):
        _work(session, feeds)
    return (clock() - begin) / repeats


def _work(session: Any, feeds: Sequence[Feed]) -> None:
    for feed in feeds:
        session.run(None, feed)
