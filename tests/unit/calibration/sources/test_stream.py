from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from onnxprune.calibration.sources import Request
from onnxprune.calibration.sources.stream import READ_FACTOR, collect
from onnxprune.errors import DataError

Ask = Callable[..., Request]


def firsts(request: Request, feeds: object) -> list[float]:
    return [float(s["x"].reshape(-1)[0]) for s in collect(feeds, request, "data").samples]  # type: ignore[arg-type]


def test_batches_and_single_samples_may_mix(ask: Ask) -> None:
    feeds = [{"x": np.zeros((2, 3))}, {"x": np.ones(3)}]
    assert firsts(ask("float[N, 3] x"), feeds) == [0, 0, 1]


def test_the_choice_is_seeded_and_spread(ask: Ask) -> None:
    feeds = [{"x": np.full((10, 1), i, float)} for i in range(100)]
    chosen = firsts(ask("float[N, 1] x", samples=100), feeds)
    assert chosen == firsts(ask("float[N, 1] x", samples=100), feeds)
    assert chosen != firsts(ask("float[N, 1] x", samples=100, seed=1), feeds)
    assert len(chosen) == 100 and chosen == sorted(chosen)
    quarters = np.histogram(chosen, 4, (0, 100))[0]
    assert quarters.min() >= 12  # uniform: 25 on average


def test_sized_sources_are_read_to_the_end_and_iterators_are_not(ask: Ask) -> None:
    feeds = [{"x": np.full((1, 1), i, float)} for i in range(1000)]
    request = ask("float[N, 1] x", samples=10)
    assert collect(feeds, request, "data").total == 1000
    loaded = collect(iter(feeds), request, "data")
    assert loaded.total == 10 * READ_FACTOR and loaded.notes


def test_a_fixed_batch_collects_single_rows(ask: Ask) -> None:
    feeds = [{"x": np.full((rows, 2), i, float)} for i, rows in enumerate((1, 4, 2, 3, 4))]
    loaded = collect(feeds, ask("float[4, 2] x"), "data")
    assert [s["x"][:, 0].tolist() for s in loaded.samples] == [[1] * 4, [0, 2, 2, 3], [4] * 4]
    with pytest.raises(DataError, match="fixed at 4"):
        collect(feeds[:1], ask("float[4, 2] x"), "data")


def test_rows_of_one_shape_fill_a_fixed_batch(ask: Ask) -> None:
    feeds = [{"x": np.zeros((1, width))} for width in (2, 3, 2, 3)]
    loaded = collect(feeds, ask("float[2, w] x"), "data")
    assert [s["x"].shape for s in loaded.samples] == [(2, 2), (2, 3)]


def test_memory_is_what_was_chosen(ask: Ask) -> None:
    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for _ in range(64):
            yield {"x": np.zeros((16, 2**15), np.float32)}  # 2 MB a feed, 128 KB a sample

    tracemalloc.start()
    loaded = collect(feeds(), ask("float[N, d] x", samples=16), "data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(loaded.samples) == 16 and peak < 12 * 2**20


def test_nothing(ask: Ask) -> None:
    with pytest.raises(DataError, match="data yields no samples"):
        collect([], ask("float[N, 1] x"), "data")
