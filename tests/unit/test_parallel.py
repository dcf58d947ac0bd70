"""Threads of the solvers: results in order, errors seen, BLAS as it was before."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  # its BLAS library must be loaded to be counted
from threadpoolctl import threadpool_info, threadpool_limits

from onnxprune.parallel import map_threads


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("threads", [1, 2, 4, None])
def test_order_is_kept(threads: int | None) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert map_threads(slow_first, range(6), threads) == [0, 1, 4, 9, 16, 25]


def test_nothing_to_do() -> None:
    assert map_threads(lambda item: item, []) == []


def test_iterators_are_consumed_once() -> None:
    assert map_threads(str, (i for i in (1, 2, 3)), 2) == ["1", "2", "3"]


@pytest.mark.parametrize("threads", [1, 3])
def test_exceptions_propagate(threads: int) -> None:
    def fail(item: int) -> int:
        if item == 2:
            raise KeyError("item 2")
        return item

    with pytest.raises(KeyError, match="item 2"):
        map_threads(fail, range(4), threads)


def test_really_at_the_same_time_and_not_more_than_asked() -> None:
    meet = threading.Barrier(2, timeout=10)  # breaks unless two threads come
    names = map_threads(lambda _: (meet.wait(), threading.get_ident())[1], range(4), 2)
    assert len(set(names)) <= 2
    assert threading.get_ident() not in names


def test_a_single_item_stays_in_this_thread() -> None:
    assert map_threads(lambda _: threading.get_ident(), [0], 4) == [threading.get_ident()]


@pytest.mark.parametrize(
    ("items", "threads", "each"), [(4, 2, 1), (4, 4, 1), (2, 4, 2), (3, 4, 1), (1, 4, 4), (1, 1, 1)]
)
def test_blas_shares_the_processors(items: int, threads: int, each: int) -> None:
    with threadpool_limits(4, user_api="blas"):
        before = blas_threads()
        assert before and min(before) > 0
        found = map_threads(lambda _: blas_threads(), range(items), threads)
        assert found == [[each] * len(before)] * items
        assert blas_threads() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_is_restored_after_an_error(threads: int) -> None:
    with threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        with pytest.raises(np.linalg.LinAlgError):
            map_threads(np.linalg.inv, [np.zeros((2, 2)), np.eye(2)], threads)
        assert blas_threads() == before
