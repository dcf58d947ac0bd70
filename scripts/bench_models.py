"""Whole models: speed, file and memory of pruned models against the dense one.

    python scripts/bench_models.py MODEL.onnx [--data SOURCE] [--sparsity 0.7,0.8,0.9]
           [--patterns unstructured,block:4x1,block:16x1] [--threads 1,2] [-- OPTION ...]

Each variant is made by ``onnxprune prune`` with the weights' magnitudes and the same share in each layer
(options after -- go to it as well): quick, and the speed does not depend on which weights go. Latency is
``onnxprune.bench`` with all variants in one process in turns. Memory is what creating a session with our
library adds to the resident set of a fresh process.

To see what an AVX2 machine would do, hide the wider sets from the whole process: scripts/as_avx2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onnxprune import bench, opsinfo
from onnxprune.recipe import Recipe

QUICK = ("--criterion", "magnitude", "--allocation", "uniform", "--no-refit", "--samples", "16", "--force")
MEMORY = """
import sys
import numpy as np
from onnxprune import runtime
def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
runtime.onnxruntime()
before = resident()
session = runtime.session(sys.argv[1], threads=1)
print(resident() - before)
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--sparsity", default="0.7,0.8,0.9")
    parser.add_argument("--patterns", default="unstructured,block:4x1,block:16x1")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rounds", type=int, default=15)
    ours, more = sys.argv[1:], []
    if "--" in ours:
        ours, more = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    options = parser.parse_args(ours)
    with tempfile.TemporaryDirectory() as folder:
        made = [
            variant(options, more, Path(folder), pattern, sparsity)
            for pattern in options.patterns.split(",")
            for sparsity in options.sparsity.split(",")
        ]
        show(options, [options.model, *made])


def variant(options: argparse.Namespace, more: list[str], folder: Path, pattern: str, sparsity: str) -> Path:
    """Prune the model; return the file."""
    target = folder / f"{pattern.replace(':', '_')} {float(sparsity):.0%}.onnx"
    command = [sys.executable, "-m", "onnxprune", "prune", str(options.model), "--sparsity", sparsity]
    command += ["--pattern", pattern, "-o", str(target), *QUICK, *more]
    if options.data:
        command += ["--data", options.data]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


def show(options: argparse.Namespace, files: list[Path]) -> None:
    """Measure and print."""
    threads = tuple(int(t) for t in options.threads.split(","))
    recipe = Recipe(data=options.data) if options.data else Recipe()
    result = bench(files, threads=threads, rounds=options.rounds, recipe=recipe)
    table = Table(title=f"{options.model.name} (kernels: {opsinfo.info().level})", title_justify="left")
    for heading in ("variant", "file MB", "memory MB", *(f"{n} thread{'s' * (n > 1)}: ms" for n in threads)):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for file, model in zip(files, result.models, strict=True):
        cells = [file.stem, f"{model.file_bytes / 1e6:.1f}", f"{memory(file):.0f}"]
        for timing in (t for t in result.timings if t.name == model.name):
            # With one thread the processor's clock: it stands still while other programs run.
            ratio = timing.cpu_ratio if timing.threads == 1 else timing.ratio
            cells.append(f"{timing.min_ms:.2f}  x{1 / ratio.median:.2f}")
        table.add_row(*cells)
    console = Console(width=140)
    console.print(table)
    for note in (result.data, *result.notes):
        console.print(note)


def memory(file: Path) -> float:
    """Return what a session with our library adds to a fresh process, in MB."""
    command = [sys.executable, "-c", MEMORY, str(file)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(run.stdout)


if __name__ == "__main__":
    main()
