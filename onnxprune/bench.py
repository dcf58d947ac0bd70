"""Measure how fast models run against each other.

:mod:`onnxprune.turns` has the protocol; here are the inputs, the figures and what makes them doubtful.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError, UsageError
from onnxprune.io import load, total_bytes
from onnxprune.machine import environment
from onnxprune.progress import NullProgress, Progress
from onnxprune.recipe import Recipe
from onnxprune.runtime import cpu_count, onnxruntime
from onnxprune.timing import BenchResult, ModelLoad, Timing, doubts, paired_ratio
from onnxprune.turns import MAX_ROUNDS, Feeds, Turns, load_sessions, measure, open_session, shapes_of

if TYPE_CHECKING:
    from onnxprune.calibration.data import CalibrationData

MAX_BATCHES = 16  # of the data that are used; rounds go through them in turn


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
    sessions, loads = load_sessions(paths, names, counts[0])
    notes += _data_notes(feeds, batch)
    timings: list[Timing] = []
    for count in counts:
        if count != counts[0]:
            sessions = []  # before the next ones are made: models may be large
            sessions = [open_session(path, name, count) for path, name in zip(paths, names, strict=True)]
        progress.stage(f"timing with {count} thread{'s' * (count > 1)}", rounds)
        turns = measure(sessions, names, feeds, rounds, warmup, min_time, progress)
        timings += [_summary(name, count, turn, turns[0]) for name, turn in zip(names, turns, strict=True)]
    models = [
        ModelLoad(name, str(path), size, *(1e3 * float(np.median(values)) for values in load))
        for name, path, size, load in zip(names, paths, sizes, loads, strict=True)
    ]
    same_shapes = len({shapes_of(feed) for feed in feeds}) == 1
    return BenchResult(
        models=tuple(models),
        timings=tuple(timings),
        inputs={name: _type(value) for name, value in feeds[0].items()},
        data=source,
        notes=tuple(notes + doubts(timings, same_shapes)),
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


def _summary(name: str, threads: int, turns: Turns, first: Turns) -> Timing:
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
    shapes = {shapes_of(feed) for feed in feeds}
    if len(shapes) > 1:
        notes.append(f"the inputs have {len(shapes)} different shapes, which median, p95 and min mix")
    if batch > 1:
        notes.append(f"one run is a batch of {batch}: times are per run, not per sample")
    return notes


def _type(value: NDArray[Any]) -> str:
    return f"{value.dtype.name}[{','.join(map(str, value.shape))}]"
