"""Speed at equal accuracy: prune one model with several patterns and sparsities, and time what comes out.

    python scripts/speed_accuracy.py MODEL.onnx --data FILE.py:function --eval FILE.py:function
        [--patterns unstructured,block:4x1,block:4x1,adjacent,2:4] [--sparsities 0.5,0.7,0.8,0.9]
        [--rounds 30] [--threads 1] [-- OPTIONS OF onnxprune prune]

Prints a row for each pattern and sparsity: the task metric, the agreement with the dense model and how many
times faster than it the model runs (all in one process, in turns: ``onnxprune.bench``; with one thread by
processor time). With the library of kernels (``onnxprune ops build``) the speed is that of the kernels. Rows
that no other beats in both make the curve that counts.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from onnxprune import bench
from onnxprune.recipe import Recipe
from onnxprune.report.report import Report, read_json

PATTERNS = (
    "unstructured,block:2x1,block:4x1,block:4x1,adjacent,block:8x1,block:8x1,adjacent,"
    "block:16x1,block:16x1,adjacent,2:4"
)


@dataclass(frozen=True)
class Row:
    """One pruned model: what was asked for, and what came out."""

    pattern: str
    sparsity: float
    metric: float
    agreement: float
    ratio: float


def split_patterns(text: str) -> list[str]:
    """Split at commas, but for the one in ``block:RxC,adjacent``."""
    return re.split(r",(?!adjacent)", text)


def prune(model: Path, output: Path, pattern: str, sparsity: str | None, options: list[str]) -> Report:
    """Run ``onnxprune prune`` in a process of its own; return its report."""
    words = [sys.executable, "-m", "onnxprune", "prune", str(model), "-o", str(output), "--quiet", "--force"]
    words += ["--pattern", pattern, *(["--sparsity", sparsity] if sparsity else []), *options]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return Report.from_dict(read_json(output.with_suffix(".json")))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--data", required=True, help="Calibration data, as for onnxprune prune.")
@click.option("--eval", "metric", required=True, help="Task metric, as for onnxprune prune.")
@click.option("--patterns", default=PATTERNS, show_default=True)
@click.option("--sparsities", default="0.5,0.7,0.8,0.9", show_default=True, help="N:M has its own.")
@click.option("--rounds", default=30, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--batch-size", type=int, help="Samples a run (default: 1).")
def main(
    model: Path,
    options: tuple[str, ...],
    data: str,
    metric: str,
    patterns: str,
    sparsities: str,
    rounds: int,
    threads: int,
    batch_size: int | None,
) -> None:
    """Print accuracy and speed of MODEL pruned with several patterns; OPTIONS go to onnxprune prune."""
    cases = [
        (pattern, sparsity)
        for pattern in split_patterns(patterns)
        for sparsity in ([None] if re.fullmatch(r"\d+:\d+", pattern) else sparsities.split(","))
    ]
    given = ["--data", data, "--eval", metric, *options]
    with tempfile.TemporaryDirectory() as folder:
        paths, reports = [], []
        for number, (pattern, sparsity) in enumerate(cases):
            click.echo(f"{pattern} {sparsity or ''}", err=True)
            paths.append(Path(folder) / f"{number}.onnx")
            reports.append(prune(model, paths[-1], pattern, sparsity, given))
        recipe = Recipe(data=data, batch_size=batch_size)
        timings = bench([model, *paths], threads=[threads], rounds=rounds, recipe=recipe).timings
    dense = reports[0].metric_before
    rows = [
        Row(
            pattern,
            report.sparsity,
            report.metric_after or 0.0,
            min((item["cosine"] or 0.0 for item in report.agreements), default=0.0),
            1 / (timing.cpu_ratio if threads == 1 else timing.ratio).median,
        )
        for (pattern, _), report, timing in zip(cases, reports, timings[1:], strict=True)
    ]
    click.echo(
        f"dense: {dense:.2f}\n\n| pattern | zeros | metric | cosine | speed | |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        best = not any(o.metric >= row.metric and o.ratio > row.ratio for o in rows)
        click.echo(
            f"| {row.pattern} | {row.sparsity:.1%} | {row.metric:.2f} | {row.agreement:.4f} "
            f"| {row.ratio:.2f}x | {'best at this accuracy' if best else ''} |"
        )


if __name__ == "__main__":
    main()
