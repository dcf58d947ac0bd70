"""Times the stages of a run; limits of time go by :func:`now`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


def now() -> float:
    """Return seconds that only grow: differences are wall time."""
    return time.monotonic()


class Clock:
    """Collects (stage, wall seconds, processor seconds) in :attr:`timings`."""

    def __init__(self) -> None:
        self.timings: list[tuple[str, float, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a ``with`` statement; one that raises is not recorded."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.timings.append((name, time.perf_counter() - wall, time.process_time() - cpu))
