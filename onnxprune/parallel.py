"""Threads of the solvers: several matrices at once with one BLAS thread each, or one with all of them.

BLAS threads wait for each other after every product, busily; on small matrices, or on a machine that does
other work too, that costs more than it brings. Independent layers and candidates share the processors better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from typing import Self, TypeVar

from threadpoolctl import ThreadpoolController

from onnxprune import runtime

T = TypeVar("T")
R = TypeVar("R")


@cache
def _controller() -> ThreadpoolController:
    """Find the BLAS libraries of numpy and scipy once: it takes milliseconds."""
    import numpy  # noqa: F401
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()


def map_threads(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> list[R]:
    """Return ``[function(item) for item in items]``, computed by up to ``threads`` threads.

    Args:
        function: numpy code, which releases the interpreter lock where it matters.
        items: independent of each other.
        threads: at most; default all processors of this process.
    """
    work = list(items)
    available = threads or runtime.cpu_count()
    workers = min(available, len(work))
    with _controller().limit(limits=max(1, available // max(workers, 1)), user_api="blas"):
        if workers <= 1:
            return [function(item) for item in work]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(function, work))


class Team:
    """Threads that work on parts of one array, with one BLAS thread each.

    BLAS splits a product only; here the arithmetic around it is shared too. One thread: the caller
    itself, and BLAS stays as it is (several teams may work at the same time).
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._stack = ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.threads > 1:
            self._stack.enter_context(_controller().limit(limits=1, user_api="blas"))
            self._pool = self._stack.enter_context(ThreadPoolExecutor(self.threads))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def split(self, size: int) -> list[slice]:
        """Return a part of ``range(size)`` for each thread."""
        parts = max(1, min(self.threads, size))
        return [slice(size * k // parts, size * (k + 1) // parts) for k in range(parts)]

    def run(self, function: Callable[[slice], object], parts: Sequence[slice]) -> None:
        """Call ``function`` with each part."""
        if self._pool is None or len(parts) == 1:
            for part in parts:
                function(part)
        else:
            list(self._pool.map(function, parts))
