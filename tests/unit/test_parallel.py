"""Threads of the solvers: results in order, errors seen, BLAS as it was before."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  # its BLAS library must be loaded to be counted
from threadpoolctl import threadpool_info, threadpool_limits

from onnxprune import parallel
from onnxprune.parallel import available, map_threads, multiply, split, workers


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("threads", [1, 2, 4, None])
def test_order_is_kept(threads: int | None) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    with workers(threads):
        assert map_threads(slow_first, range(6)) == [0, 1, 4, 9, 16, 25]


def test_without_workers_everything_stays_in_this_thread() -> None:
    assert available() == 1
    assert map_threads(lambda _: threading.get_ident(), range(3)) == [threading.get_ident()] * 3


def test_nothing_to_do() -> None:
    with workers(2):
        assert map_threads(lambda item: item, []) == []


def test_iterators_are_consumed_once() -> None:
    with workers(2):
        assert map_threads(str, (i for i in (1, 2, 3))) == ["1", "2", "3"]


@pytest.mark.parametrize("threads", [1, 3])
def test_exceptions_propagate(threads: int) -> None:
    def fail(item: int) -> int:
        if item == 2:
            raise KeyError("item 2")
        return item

    with workers(threads), pytest.raises(KeyError, match="item 2"):
        map_threads(fail, range(4))


def test_really_at_the_same_time_and_not_more_than_asked() -> None:
    meet = threading.Barrier(2, timeout=10)  # breaks unless two threads come
    with workers(2):
        names = map_threads(lambda _: (meet.wait(), threading.get_ident())[1], range(4))
    assert len(set(names)) == 2
    assert threading.get_ident() in names  # it works too


def test_the_caller_gets_its_pool_back() -> None:
    with workers(2):
        with pytest.raises(IndexError, match="own"):
            map_threads(lambda item: (_ for _ in ()).throw(IndexError("its own")), range(4))
        assert available() == 2
        assert map_threads(lambda item: item, range(4)) == [0, 1, 2, 3]


def test_a_failure_ends_the_rest() -> None:
    done = []

    def fail(item: int) -> None:
        if item == 0:
            raise KeyError
        time.sleep(0.01)
        done.append(item)

    with workers(2), pytest.raises(KeyError):
        map_threads(fail, range(100))
    assert len(done) < 99


def test_a_single_item_stays_in_this_thread() -> None:
    with workers(4):
        assert map_threads(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]


def test_workers_do_not_wait_for_each_other() -> None:
    """What a worker calls stays in its thread: a pool that waits for itself never ends."""
    with workers(2):
        found = map_threads(lambda _: (available(), map_threads(lambda i: i, range(3))), range(4))
    assert found == [(1, [0, 1, 2])] * 4


def test_blas_has_one_thread_and_gets_the_others_back() -> None:
    with threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        assert before and min(before) > 0
        with workers(2):
            assert map_threads(lambda _: blas_threads(), range(2)) == [[1] * len(before)] * 2
        assert blas_threads() == before


def test_blas_is_restored_after_an_error() -> None:
    with threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        with pytest.raises(np.linalg.LinAlgError), workers(2):
            map_threads(np.linalg.inv, [np.zeros((2, 2)), np.eye(2)])
        assert blas_threads() == before
        assert available() == 1


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_parts_cover_everything_once(size: int) -> None:
    with workers(3):
        parts = split(size)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(size))
    assert len(parts) == min(3, size)


@pytest.mark.parametrize("groups", [1, 3])
def test_multiply(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "LEAST", 1)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(groups, 7, 5)), rng.normal(size=(groups, 5, 4))
    with workers(3):
        np.testing.assert_allclose(multiply(a, b), a @ b)
