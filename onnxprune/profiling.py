"""Where a model's time goes, by operator, as ONNX Runtime's own profiler tells it."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.inmemory import session_of
from onnxprune.model import Model

_RUNS = 10
_SECONDS = 2.0  # after which no further round is made


def op_seconds(
    model: Model, feeds: Sequence[Mapping[str, Any]], *, threads: int | None = None
) -> dict[str, float]:
    """Return the seconds per run of each operator type of the optimised graph, the largest first.

    Args:
        model: as it is in memory.
        feeds: each is run a few times, after one run that does not count.
        threads: of ONNX Runtime.

    Raises:
        ModelError: when ONNX Runtime refuses the model.
    """
    return spent(*_profiled(model, feeds, threads))


def fastest_seconds(
    model: Model, feed: Mapping[str, Any], ops: Collection[str], *, threads: int | None = None
) -> float:
    """Return the seconds that operators of the types ``ops`` take in the fastest of some runs.

    What a model needs around them, such as another layout of its input, does not count.
    """
    events, rounds = _profiled(model, [feed], threads)
    kernels = _kernels(events)
    each = len(kernels) // rounds
    turns = [kernels[k * each : (k + 1) * each] for k in range(1, rounds)]
    micros = [sum(float(e["dur"]) for e in turn if e["args"]["op_name"] in ops) for turn in turns]
    return min(micros) * 1e-6


def _profiled(
    model: Model, feeds: Sequence[Mapping[str, Any]], threads: int | None
) -> tuple[list[Mapping[str, Any]], int]:
    """Return the profiler's events, and of how many equal rounds they are."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        session = session_of(model, threads=threads, profile=str(Path(folder) / "run"))
        names = {item.name for item in session.get_inputs()}
        start, rounds = time.perf_counter(), 0
        while rounds <= _RUNS and (rounds < 2 or time.perf_counter() - start < _SECONDS):
            for feed in feeds:
                session.run(None, {name: array for name, array in feed.items() if name in names})
            rounds += 1
        path = Path(session.end_profiling())
        return json.loads(path.read_text(encoding="utf8")), rounds


def _kernels(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def spent(events: Sequence[Mapping[str, Any]], rounds: int) -> dict[str, float]:
    """Return the seconds per round of each operator type, the largest first.

    Args:
        events: of the profiler, of as many equal rounds.
        rounds: the first one does not count.
    """
    kernels = _kernels(events)
    first = len(kernels) // rounds  # of the run that does not count
    total: Counter[str] = Counter()
    for event in kernels[first:]:
        total[event["args"]["op_name"]] += event["dur"]
    return {op: us * 1e-6 / max(rounds - 1, 1) for op, us in total.most_common()}
