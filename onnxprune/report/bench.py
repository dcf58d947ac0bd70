"""The times of bench on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from onnxprune.report import units
from onnxprune.report.console import paragraph, table

if TYPE_CHECKING:
    from onnxprune.timing import BenchResult, Timing


def render_bench(console: Console, result: BenchResult, quiet: bool = False) -> None:
    """Print the times; the first model is what the others are measured against."""
    for line in bench_verdicts(result):
        paragraph(console, line, "bold")
    if quiet:
        return
    console.print()
    rows = [
        (
            timing.name,
            timing.threads,
            units.seconds(timing.median_ms / 1e3),
            units.seconds(timing.p95_ms / 1e3),
            units.seconds(timing.min_ms / 1e3),
            units.seconds(timing.cpu_ms / 1e3),
            f"{100 * timing.spread:.0f} %",
            "" if timing.name == result.models[0].name else _speed(timing),
        )
        for timing in result.timings
    ]
    columns = (
        "name:model",
        ">threads",
        ">median",
        ">p95",
        ">best",
        ">processor",
        ">spread",
        ">speed (95 % interval)",
    )
    table(console, columns, rows)
    console.print()
    loads = [
        (
            item.name,
            units.size(item.file_bytes),
            units.seconds(item.load_ms / 1e3),
            units.seconds(item.load_cpu_ms / 1e3),
        )
        for item in result.models
    ]
    table(console, ("name:model", ">file", ">load", ">processor"), loads)
    console.print()
    inputs = ", ".join(f"{name} {form}" for name, form in result.inputs.items())
    rounds = ", ".join(dict.fromkeys(units.plural(timing.rounds, "round") for timing in result.timings))
    pairs = [("data", result.data), ("inputs", inputs), ("measured", rounds), ("machine", _machine(result))]
    table(console, ("", ""), [pair for pair in pairs if pair[1]])
    for note in result.notes:
        paragraph(console, f"note: {note}", "yellow")


def bench_verdicts(result: BenchResult) -> list[str]:
    """Say for each model but the first whether it is faster, once per number of threads."""
    first = result.models[0].name
    lines = []
    for timing in result.timings:
        where = units.plural(timing.threads, "thread")
        if timing.name == first:
            if len(result.models) == 1:
                lines.append(f"{timing.name} takes {units.seconds(timing.median_ms / 1e3)}, {where}")
            continue
        if not timing.ratio.median > 0:
            lines.append(f"{timing.name} is too quick for this machine's clock, {where}")
            continue
        if timing.ratio.low <= 1 <= timing.ratio.high:
            lines.append(f"{timing.name} is as fast as {first} within the noise ({_speed(timing)}), {where}")
            continue
        word = "faster" if timing.ratio.median < 1 else "slower"
        times = 1 / timing.ratio.median if word == "faster" else timing.ratio.median
        if f"{times:.2f}" == "1.00":
            lines.append(f"{timing.name} is as fast as {first} ({_speed(timing)}), {where}")
            continue
        lines.append(f"{timing.name} is {times:.2f}x {word} than {first}, {where}")
    return lines


def _speed(timing: Timing) -> str:
    """How many runs fit into the time of one run of the first model."""
    ratio = timing.ratio
    if not ratio.median > 0:  # NaN: no round could be timed
        return "unknown"
    return f"{1 / ratio.median:.2f}x ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"


def _machine(result: BenchResult) -> str:
    parts = [str(result.environment.get(key, "")) for key in ("cpu", "platform")]
    return ", ".join(part for part in parts if part)
