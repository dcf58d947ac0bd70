"""What a smaller model saves: multiplications and measured time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune import runtime
from onnxprune.allocation.widths import total
from onnxprune.inmemory import session_of
from onnxprune.kernels.stopwatch import best_times
from onnxprune.model import Model
from onnxprune.slim.works import Owners, flop_works
from onnxprune.structure.groups import Layout
from onnxprune.structure.sample import sample

SECONDS = 2.0  # for the turns of two models


def multiplications(model: Model, feeds: Sequence[Mapping[str, Any]], threads: int | None = None) -> float:
    """Return the multiplications of all products of a model on one sample."""
    shapes, _ = sample(model, feeds[0], threads)
    works = flop_works(model, Owners((), Layout({}, {}, {})), shapes)
    return total(works, {}, {})


def measured_speed(
    dense: Model, smaller: Model, feeds: Sequence[Mapping[str, Any]], threads: int | None
) -> dict[int, float]:
    """Return number of threads -> how many times faster the smaller model is, in stock ONNX Runtime."""
    found = {}
    for count in sorted({1, threads or runtime.cpu_count()}):
        sessions = [session_of(model, threads=count) for model in (dense, smaller)]
        slow, fast = best_times(sessions, feeds, count, seconds=SECONDS)
        found[count] = slow / fast
    return found
