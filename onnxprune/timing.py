"""Results of :mod:`onnxprune.bench`: plain data, how ratios are summarised, and what makes them doubtful."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SCHEMA_VERSION = 1
NOISY = 0.1  # a spread of the times (half the models' rounds within +-5 %) above which a note warns
_RUNNING = 0.85  # share of a single thread's wall time that is processor time on an idle machine, at least


@dataclass(frozen=True)
class Ratio:
    """This model's time over the first model's: below 1 is faster.

    Attributes:
        median: of the ratios of all rounds.
        low: lower end of the 95 % interval of that median, from order statistics: no assumption about the
            distribution, no resampling (Conover, Practical Nonparametric Statistics). Below 6 rounds it
            is the whole range.
        high: upper end.
        quartiles: of the ratios of single rounds.
    """

    median: float
    low: float
    high: float
    quartiles: tuple[float, float]


@dataclass(frozen=True)
class ModelLoad:
    """One model as a file.

    Attributes:
        name: shortest name that tells it from the others.
        path: as given.
        file_bytes: with external data.
        load_ms: wall time to create a session, median.
        load_cpu_ms: processor time of that, all threads, median.
    """

    name: str
    path: str
    file_bytes: int
    load_ms: float
    load_cpu_ms: float


@dataclass(frozen=True)
class Timing:
    """One model at one number of threads; times are of single runs, in milliseconds.

    Attributes:
        name: of the model.
        threads: intra-op threads of ONNX Runtime.
        rounds: turns that were counted.
        runs: runs that were counted.
        median_ms: wall time.
        p95_ms: wall time that 95 % of the runs stay below.
        min_ms: wall time of the fastest run.
        cpu_ms: processor time of a run, all threads, median over rounds.
        spread: interquartile range of the rounds' times over their median.
        ratio: wall time against the first model.
        cpu_ratio: processor time against the first model.
    """

    name: str
    threads: int
    rounds: int
    runs: int
    median_ms: float
    p95_ms: float
    min_ms: float
    cpu_ms: float
    spread: float
    ratio: Ratio
    cpu_ratio: Ratio


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        models: in the order given; the first is what ratios refer to.
        timings: threads outside, models inside.
        inputs: name -> "float32[1,3,224,224]" of the first batch.
        data: one line that names the inputs.
        notes: what makes the figures doubtful, one sentence each.
        environment: machine and versions.
    """

    models: tuple[ModelLoad, ...]
    timings: tuple[Timing, ...]
    inputs: dict[str, str]
    data: str
    notes: tuple[str, ...]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        from onnxprune.report.report import plain

        return {"schema_version": SCHEMA_VERSION, **plain(self)}


def paired_ratio(times: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Summarise ``times[r] / reference[r]`` over rounds ``r``."""
    # The processor clock of some systems is coarse: two zeros are equal, one is unknown and left out.
    pairs = [(t, r) for t, r in zip(times, reference, strict=True) if (t > 0) == (r > 0)]
    ratios = np.sort(np.array([t / r if r > 0 else 1.0 for t, r in pairs] or [math.nan]))
    n = len(ratios)
    reach = 0.98 * math.sqrt(n)  # 1.96 standard deviations of the binomial(n, 1/2) rank of the median
    low = ratios[max(0, math.floor((n - 1) / 2 - reach))]
    high = ratios[min(n - 1, math.ceil((n - 1) / 2 + reach))]
    quartiles = np.percentile(ratios, (25, 75))
    return Ratio(
        float(np.median(ratios)), float(low), float(high), (float(quartiles[0]), float(quartiles[1]))
    )


def doubts(timings: Sequence[Timing], same_shapes: bool) -> list[str]:
    """Say what makes ``timings`` doubtful, one sentence each; inputs of several shapes spread anyway."""
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
