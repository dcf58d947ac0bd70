"""Measure how fast models run against each other.

Protocol: all models live in one process and take turns, in rounds. A round gives every model one turn
on the same inputs; every second round goes backwards, so that a drift of the machine (clock, heat,
neighbours) hits all models alike. Ratios are formed within a round and only then summarised: what
slows a whole round down cancels. A turn is one run, or as many as fill 5 ms; of several the first is
not counted, it pays for the caches that the other models emptied.

Each model has one session per number of threads. ONNX Runtime's idle threads spin for work, and the
threads of one session would take the processors from the next (EfficientNet-Lite0 on two busy cores:
69 ms in turns, 46 ms alone, 11 ms without spinning), so spinning is off: times with several threads
are those of a machine that is shared.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate import run
from onnxprune.io import load, total_bytes
from onnxprune.machine import environment
from onnxprune.progress import NullProgress, Progress
from onnxprune.recipe import Recipe
from onnxprune.runtime import cpu_count, onnxruntime, session
from onnxprune.timing import BenchResult, ModelLoad, Timing, paired_ratio

if TYPE_CHECKING:
    from onnxprune.calibration.data import CalibrationData

TURN_SECONDS = 0.005  # a turn shorter than this measures the timer and the cold caches
MAX_RUNS_PER_TURN = 1000
LOADS = 3  # how often each model is loaded for the loading time
NOISY = 0.1  # a spread of the times (half the models' rounds within +-5 %) above which a note warns
_RUNNING = 0.85  # share of a single thread's wall time that is processor time on an idle machine, at least
MAX_ROUNDS = 100_000
MAX_BATCHES = 16  # of the data that are used; rounds go through them in turn
LOAD_SECONDS = 10.0  # a set of models that takes longer than this is loaded once
_CONFIG = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}

Feeds = Mapping[str, NDArray[Any]]


def bench(
    paths: Sequence[str | Path],
    data: Any = None,
    *,
    threads: Sequence[int] | None = None,
    rounds: int = 30,
    warmup: int = 3,
    min_time: float = 0.0,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Time models in turns.

    Args:
        paths: model files; ratios refer to the first.
        data: inputs for all models as :func:`onnxprune.prune` takes them, or the batches themselves; round
            ``r`` uses batch ``r % n``. By default
            one batch of what ``recipe`` says (``data``, ``batch_size``: default 1), else synthetic.
        threads: numbers of intra-op threads to measure, one after another (default: all processors).
        rounds: turns of each model.
        warmup: turns of each model before that; at least 1 is made.
        min_time: seconds to measure per number of threads at least; adds rounds.
        recipe: settings of the data, and ``seed``.
        progress: told how far it is.

    Raises:
        UsageError: when there is no model, or a number makes no sense.
        ModelError: when ONNX Runtime refuses a model.
        DataError: when the inputs do not fit one of the models.
    """
    _check(paths, threads, rounds, warmup, min_time)
    recipe, progress = recipe or Recipe(), progress or NullProgress()
    counts = tuple(dict.fromkeys(threads or (cpu_count(),)))
    names = labels(paths)
    sizes = [total_bytes(path, allow_external=recipe.allow_external) for path in paths]
    notes = _machine_notes(counts)
    onnxruntime()  # its own import is no part of a model's loading time
    progress.stage("loading")
    feeds, source, batch = _feeds(paths[0], data, recipe)
    sessions, loads = _load(paths, names, counts[0])
    notes += _data_notes(feeds, batch)
    timings: list[Timing] = []
    for count in counts:
        if count != counts[0]:
            sessions = []  # before the next ones are made: models may be large
            sessions = [_session(path, name, count) for path, name in zip(paths, names, strict=True)]
        progress.stage(f"timing with {count} thread{'s' * (count > 1)}", rounds)
        turns = _measure(sessions, names, feeds, rounds, warmup, min_time, progress)
        timings += [_summary(name, count, turn, turns[0]) for name, turn in zip(names, turns, strict=True)]
    models = [
        ModelLoad(name, str(path), size, *(1e3 * float(np.median(values)) for values in load))
        for name, path, size, load in zip(names, paths, sizes, loads, strict=True)
    ]
    same_shapes = len({_shapes(feed) for feed in feeds}) == 1
    return BenchResult(
        models=tuple(models),
        timings=tuple(timings),
        inputs={name: _type(value) for name, value in feeds[0].items()},
        data=source,
        notes=tuple(notes + _timing_notes(timings, same_shapes)),
        environment=environment(),
    )


def labels(paths: Sequence[str | Path]) -> list[str]:
    """Return the shortest names that tell ``paths`` apart: file name, else path, else path and number.

    >>> labels(["a/model.onnx", "b/model.onnx", "c/other.onnx"])
    ['a/model.onnx', 'b/model.onnx', 'other.onnx']
    """
    places: dict[str, set[str]] = {}
    for path in paths:
        places.setdefault(Path(path).name, set()).add(str(path))
    names = [Path(path).name if len(places[Path(path).name]) == 1 else str(path) for path in paths]
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return unique


def _check(
    paths: Sequence[str | Path], threads: Sequence[int] | None, rounds: int, warmup: int, min_time: float
) -> None:
    if isinstance(paths, str | Path) or not paths:
        raise UsageError("there is no list of models to measure", "name one model or more")
    for count in threads or ():
        if count < 1:
            raise UsageError(f"--threads is {count}, wanted at least 1")
        if count > (most := max(64, 4 * cpu_count())):
            raise UsageError(f"--threads is {count}, wanted at most {most} on {cpu_count()} processors")
    if not 1 <= rounds <= MAX_ROUNDS:
        raise UsageError(f"--rounds is {rounds}, wanted 1 to {MAX_ROUNDS}")
    if warmup < 0:
        raise UsageError(f"--warmup is {warmup}, wanted at least 0")
    if not 0 <= min_time < math.inf:
        raise UsageError(f"--min-time is {min_time:g} seconds, wanted at least 0")


def _feeds(first: str | Path, data: Any, recipe: Recipe) -> tuple[list[Feeds], str, int]:
    """Return the batches to run, one line that names them, and how many samples the first one has."""
    if isinstance(data, str | Path):
        recipe, data = replace(recipe, data=str(data)), None
    if data is None:
        data = _load_data(first, recipe)
    elif isinstance(data, Mapping | np.ndarray):
        from onnxprune.calibration.data import from_iterable

        data = from_iterable(load(first, allow_external=recipe.allow_external), data, recipe)
    feeds: list[Feeds]
    if isinstance(data, Sequence):
        feeds, source, batched = list(data), "inputs from Python", None
    else:
        feeds, source, batched = list(data.batches), data.source, data.batched
    if not feeds:
        raise DataError("there is no input to run the models on")
    if len(feeds) > MAX_BATCHES:  # spread over all, since text comes sorted by length
        feeds = [feeds[i * len(feeds) // MAX_BATCHES] for i in range(MAX_BATCHES)]
    firsts = {a.shape[0] for name, a in feeds[0].items() if a.ndim and (batched is None or name in batched)}
    return feeds, source, firsts.pop() if len(firsts) == 1 else 1


def _load_data(path: str | Path, recipe: Recipe) -> CalibrationData:
    from onnxprune.calibration.data import load_data
    from onnxprune.calibration.inputs import model_inputs

    model = load(path, allow_external=recipe.allow_external)
    fixed = model_inputs(model).fixed
    if recipe.batch_size is None and fixed is None:
        recipe = replace(recipe, batch_size=1)
    batch = recipe.batch_size or fixed or 1
    needed = batch if recipe.data is None else min(recipe.samples, MAX_BATCHES * batch)
    recipe = replace(recipe, samples=needed)
    return load_data(model, recipe)


def _session(path: str | Path, name: str, threads: int) -> Any:
    return session(path, threads=threads, config=_CONFIG, name=name)


def _load(
    paths: Sequence[str | Path], names: Sequence[str], threads: int
) -> tuple[list[Any], list[tuple[list[float], list[float]]]]:
    """Create the sessions :data:`LOADS` times in turns.

    Returns:
        The last sessions, and per model (wall, CPU) seconds of each time.
    """
    loads: list[tuple[list[float], list[float]]] = [([], []) for _ in paths]
    sessions: list[Any] = []
    begin = time.perf_counter()
    for _ in range(LOADS):
        sessions = []
        for (wall, cpu), path, name in zip(loads, paths, names, strict=True):
            clock, used = time.perf_counter(), time.process_time()
            sessions.append(_session(path, name, threads))
            wall.append(time.perf_counter() - clock)
            cpu.append(time.process_time() - used)
        if time.perf_counter() - begin > LOAD_SECONDS:
            break
    return sessions, loads


@dataclass
class _Turns:
    """Seconds of one model: every counted run, and one value per round."""

    runs: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def _measure(
    sessions: Sequence[Any],
    names: Sequence[str],
    feeds: Sequence[Feeds],
    rounds: int,
    warmup: int,
    min_time: float,
    progress: Progress,
) -> list[_Turns]:
    chosen = [_chosen(item, feeds, name) for item, name in zip(sessions, names, strict=True)]
    # Every shape once, too: ONNX Runtime plans its memory when it first sees one.
    for r in range(max(1, warmup, len(feeds))):
        for item, batches in zip(sessions, chosen, strict=True):
            item.run(None, batches[r % len(feeds)])
    repeats = [_repeats(item, batches[0]) for item, batches in zip(sessions, chosen, strict=True)]
    turns = [_Turns() for _ in sessions]
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin, r = time.perf_counter(), 0
        while r < rounds or (time.perf_counter() - begin < min_time and r < MAX_ROUNDS):
            order = range(len(sessions)) if r % 2 == 0 else reversed(range(len(sessions)))
            for i in order:
                _take_turn(sessions[i], chosen[i][r % len(feeds)], repeats[i], turns[i])
            progress.advance()
            r += 1
    finally:
        if collecting:
            gc.enable()
    return turns


def _chosen(model: Any, feeds: Sequence[Feeds], name: str) -> list[Feeds]:
    """Run once on every shape, where a mistake is still explained; return the inputs that the model has."""
    wanted = [item.name for item in model.get_inputs()]
    for feed in {_shapes(feed): feed for feed in feeds}.values():
        run(model, feed, name=name)
    return [{item: feed[item] for item in wanted} for feed in feeds]


def _repeats(model: Any, feed: Feeds) -> int:
    """Runs in a turn: one, or as many as fill :data:`TURN_SECONDS` and one more that is not counted."""
    begin = time.perf_counter()
    model.run(None, feed)
    once = time.perf_counter() - begin
    if once >= TURN_SECONDS:
        return 1
    return 1 + min(MAX_RUNS_PER_TURN, math.ceil(TURN_SECONDS / max(once, 1e-6)))


def _take_turn(model: Any, feed: Feeds, repeats: int, turns: _Turns) -> None:
    times = []
    if repeats > 1:
        model.run(None, feed)
        repeats -= 1
    used = time.process_time()
    for _ in range(repeats):
        begin = time.perf_counter()
        model.run(None, feed)
        times.append(time.perf_counter() - begin)
    turns.cpu.append((time.process_time() - used) / repeats)
    turns.wall.append(float(np.median(times)))
    turns.runs.extend(times)


def _summary(name: str, threads: int, turns: _Turns, first: _Turns) -> Timing:
    runs, wall, cpu = (1e3 * np.array(values) for values in (turns.runs, turns.wall, turns.cpu))
    low, middle, high = np.percentile(wall, (25, 50, 75))
    return Timing(
        name=name,
        threads=threads,
        rounds=len(wall),
        runs=len(runs),
        median_ms=float(np.median(runs)),
        p95_ms=float(np.percentile(runs, 95)),
        min_ms=float(runs.min()),
        cpu_ms=float(np.median(cpu)),
        spread=float((high - low) / middle) if middle > 0 else 0.0,
        ratio=paired_ratio(turns.wall, first.wall),
        cpu_ratio=paired_ratio(turns.cpu, first.cpu),
    )


def _machine_notes(counts: Sequence[int]) -> list[str]:
    cores, notes = cpu_count(), []
    notes += [f"{n} threads on {cores} processors: they wait for each other" for n in counts if n > cores]
    with contextlib.suppress(OSError, AttributeError):  # not every system keeps a load average
        load_average = os.getloadavg()[0]
        if load_average > max(0.5, 0.25 * cores):
            notes.append(f"the load average was {load_average:.1f} before the start: other programs run")
    return notes


def _data_notes(feeds: Sequence[Feeds], batch: int) -> list[str]:
    notes = []
    shapes = {_shapes(feed) for feed in feeds}
    if len(shapes) > 1:
        notes.append(f"the inputs have {len(shapes)} different shapes, which median, p95 and min mix")
    if batch > 1:
        notes.append(f"one run is a batch of {batch}: times are per run, not per sample")
    return notes


def _timing_notes(timings: Sequence[Timing], same_shapes: bool) -> list[str]:
    notes = []
    spread = max(item.spread for item in timings)
    if same_shapes and spread > NOISY:
        notes.append(
            f"the quartiles of the rounds lie up to {spread:.0%} apart: the machine is busy or changes its "
            "clock; trust ratio, min and CPU time rather than the median"
        )
    waited = [item for item in timings if item.threads == 1 and item.cpu_ms < _RUNNING * item.median_ms]
    if waited:
        worst = min(waited, key=lambda item: item.cpu_ms / item.median_ms)
        notes.append(
            f"the process had the processor for {worst.cpu_ms / worst.median_ms:.0%} of the time: "
            "other programs took it, CPU time is what counts here"
        )
    vague = [item for item in timings if item.ratio.high - item.ratio.low > NOISY * item.ratio.median]
    if vague:
        worst = max(vague, key=lambda item: item.ratio.high - item.ratio.low)
        threads = f"{worst.threads} thread{'s' * (worst.threads > 1)}"
        notes.append(
            f"the ratio is uncertain ({worst.name} with {threads} takes {worst.ratio.low:.2f} to "
            f"{worst.ratio.high:.2f} of the first model's time); measure longer with --rounds or --min-time"
        )
    return notes


def _shapes(feed: Feeds) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, feed[name].shape) for name in sorted(feed))


def _type(value: NDArray[Any]) -> str:
    return f"{value.dtype.name}[{','.join(map(str, value.shape))}]"
