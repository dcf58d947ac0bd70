"""Threads of the solvers: several matrices at once with one BLAS thread each, or one with all of them.

BLAS threads wait for each other after every product, busily; on small matrices, or on a machine that does
other work too, that costs more than it brings. Independent layers and candidates share the processors better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

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
