"""Threads of the solvers: our own, with one BLAS thread each.

BLAS threads wait for each other after every product, busily: on small matrices, or on a machine that does
other work too, that costs more than it brings (MiniLM's solve: 45 s of processor time with one BLAS thread,
106 with two). So BLAS gets one thread inside :func:`workers`, and layers, candidates or rows are shared out.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from onnxprune import runtime

T = TypeVar("T")
R = TypeVar("R")
LEAST = 10_000_000  # multiplications that are worth a second thread

_local = threading.local()  # a worker sees no pool, so what it calls stays in its thread


@cache
def _controller() -> ThreadpoolController:
    """Find the BLAS libraries of numpy and scipy once: it takes milliseconds."""
    import numpy.linalg  # noqa: F401
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()


@contextmanager
def workers(threads: int | None = None) -> Iterator[None]:
    """Share the work of :func:`map_threads` and :func:`multiply` in this block among ``threads`` threads.

    Args:
        threads: at most; default all processors of this process.
    """
    number = threads or runtime.cpu_count()
    before = getattr(_local, "pool", None)
    with _controller().limit(limits=1, user_api="blas"), ThreadPoolExecutor(max(1, number - 1)) as pool:
        _local.pool = (pool, number)
        try:
            yield
        finally:
            _local.pool = before


def available() -> int:
    """Return how many threads :func:`map_threads` would use here: 1 in a worker and outside of a block."""
    pool: tuple[ThreadPoolExecutor, int] | None = getattr(_local, "pool", None)
    return pool[1] if pool else 1


def map_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``[function(item) for item in items]``.

    The calling thread works too: waking another one takes longer than a small product.

    Args:
        function: numpy code, which releases the interpreter lock where it matters.
        items: independent of each other.
    """
    work = list(items)
    if available() == 1 or len(work) <= 1:
        return [function(item) for item in work]
    waiting = deque(enumerate(work))
    results: dict[int, R] = {}

    def take() -> tuple[int, T] | None:
        try:
            return waiting.popleft()
        except IndexError:
            return None

    def pull() -> None:
        try:
            while (found := take()) is not None:
                results[found[0]] = function(found[1])
        except BaseException:
            waiting.clear()  # nobody will see the others' results
            raise

    before = _local.pool
    others = [before[0].submit(pull) for _ in range(min(before[1], len(work)) - 1)]
    _local.pool = None
    try:
        pull()
    finally:
        wait(others)
        _local.pool = before
    for other in others:
        other.result()
    return [results[number] for number in range(len(work))]


def split(size: int) -> list[slice]:
    """Return a part of ``range(size)`` for each available thread."""
    parts = max(1, min(available(), size))
    return [slice(size * k // parts, size * (k + 1) // parts) for k in range(parts)]


def multiply(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return ``a @ b`` for (groups, rows, n) and (groups, n, columns), shared out by rows."""
    groups, rows, n = a.shape
    out: NDArray[Any] = np.empty((groups, rows, b.shape[2]), np.result_type(a, b))
    parts = split(rows) if groups * rows * n * b.shape[2] > LEAST else [slice(None)]
    map_threads(lambda part: np.matmul(a[:, part], b, out=out[:, part]), parts)
    return out


def batched(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield ``numbers`` in pieces of ``size``."""
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]
