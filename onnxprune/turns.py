"""Sessions take turns and are timed.

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

import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate import run
from onnxprune.progress import Progress
from onnxprune.runtime import session

TURN_SECONDS = 0.005  # a turn shorter than this measures the timer and the cold caches
MAX_RUNS_PER_TURN = 1000
LOADS = 3  # how often each model is loaded for the loading time
MAX_ROUNDS = 100_000
LOAD_SECONDS = 10.0  # a set of models that takes longer than this is loaded once
_CONFIG = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}

Feeds = Mapping[str, NDArray[Any]]


def open_session(path: str | Path, name: str, threads: int) -> Any:
    """Create a session whose idle threads do not spin."""
    return session(path, threads=threads, config=_CONFIG, name=name)


def load_sessions(
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
            sessions.append(open_session(path, name, threads))
            wall.append(time.perf_counter() - clock)
            cpu.append(time.process_time() - used)
        if time.perf_counter() - begin > LOAD_SECONDS:
            break
    return sessions, loads


@dataclass
class Turns:
    """Seconds of one model: every counted run, and one value per round."""

    runs: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def measure(
    sessions: Sequence[Any],
    names: Sequence[str],
    feeds: Sequence[Feeds],
    rounds: int,
    warmup: int,
    min_time: float,
    progress: Progress,
) -> list[Turns]:
    """Let the sessions take turns.

    Args:
        sessions: one per model.
        names: of the models, for what goes wrong.
        feeds: batches; round ``r`` uses batch ``r % n``. Each session gets the inputs that it has.
        rounds: turns of each session that are counted.
        warmup: turns of each session before that; at least 1 is made, and one for each batch.
        min_time: seconds to measure at least; adds rounds.
        progress: advanced once a round.

    Returns:
        What each session took, in their order.

    Raises:
        DataError: when a batch does not fit one of the sessions.
    """
    chosen = [_chosen(item, feeds, name) for item, name in zip(sessions, names, strict=True)]
    # Every shape once, too: ONNX Runtime plans its memory when it first sees one.
    for r in range(max(1, warmup, len(feeds))):
        for item, batches in zip(sessions, chosen, strict=True):
            item.run(None, batches[r % len(feeds)])
    repeats = [_repeats(item, batches[0]) for item, batches in zip(sessions, chosen, strict=True)]
    turns = [Turns() for _ in sessions]
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
    for feed in {shapes_of(feed): feed for feed in feeds}.values():
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


def _take_turn(model: Any, feed: Feeds, repeats: int, turns: Turns) -> None:
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


def shapes_of(feed: Feeds) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the shapes of a batch, comparable with those of another."""
    return tuple((name, feed[name].shape) for name in sorted(feed))
