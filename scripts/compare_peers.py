"""Prune real models to one sparsity with onnxprune, its plain criteria and onnxsim; print one table.

Run by scripts/compare_peers, which makes onnxsim's own environment. A task is a folder with ``model.onnx``
and a ``task.py`` that has ``calibration(samples)`` (unlabelled feeds) and ``evaluate(session)``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from onnxprune import runtime
from onnxprune.calibration.data import load_data
from onnxprune.evaluate import load_function, task_metric
from onnxprune.io import load, save, total_bytes
from onnxprune.layers import Layer, find_layers
from onnxprune.passes.unpack import unpack
from onnxprune.recipe import Recipe

# The textbook forms: no weight update, no bias correction, the same share in each layer.
PLAIN = ("--no-refit", "--allocation", "uniform")
OURS: dict[str, tuple[str, ...]] = {
    "magnitude": ("--criterion", "magnitude", *PLAIN),
    "wanda": ("--criterion", "wanda", *PLAIN),
    "onnxprune": (),
    "onnxprune --finetune": ("--finetune",),
}
ONNXSIM = {
    "onnxsim magnitude (global)": "onnxsim.apply_magnitude_pruning(m, sparsity=s, global_sparsity=True)",
    "onnxsim Wanda": "onnxsim.apply_wanda_pruning(m, calibration_data=d, sparsity=s)",
    "onnxsim SparseGPT": "onnxsim.apply_sparsegpt_pruning(m, calibration_data=d, sparsity=s)",
    "onnxsim SparseGPT + finetune": (
        "onnxsim.apply_pruning_finetune(m, onnxsim.apply_sparsegpt_pruning("
        "m, calibration_data=d, sparsity=s), calibration_data=d)"
    ),
}


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--only", help="comma-separated methods")
    parser.add_argument("--pattern", default="unstructured", help="of onnxprune's methods")
    options = parser.parse_args()
    for task in options.tasks:
        compare(task, options.sparsity, options.samples, options.pattern, options.only)


def compare(task: Path, sparsity: float, samples: int, pattern: str, only: str | None) -> None:
    """Prune the model of ``task`` with every method."""
    source = task / "model.onnx"
    model = load(source)
    layers = [layer for layer in find_layers(model, min_size=1)[0] if layer.kind != "embedding"]
    tables = [layer.name for layer in find_layers(model)[0] if layer.kind == "embedding"]
    metric = load_function(f"{task / 'task.py'}:evaluate")
    table = Table(
        title=f"{task.name}, {sparsity:.0%} of MatMul/Gemm/Conv weights, {samples} unlabelled samples"
    )
    for name in ("method", "zeros", "metric", "MB", "s", "peak GB"):
        table.add_column(name, justify="left" if name == "method" else "right")
    value = task_metric(metric, runtime.session(source))
    table.add_row("dense", "", f"{value:.2f}", f"{total_bytes(source) / 1e6:.1f}", "", "")
    with tempfile.TemporaryDirectory() as folder:
        for name in (*OURS, *ONNXSIM):
            if only and name not in only.split(","):
                continue
            output = Path(folder) / "out.onnx"
            output.unlink(missing_ok=True)
            if name in OURS:
                arguments = [f"--data={task / 'task.py'}:calibration", f"--samples={samples}", *OURS[name]]
                arguments.append(f"--pattern={pattern}")
                arguments += [f"--exclude={table_name}" for table_name in tables]
                command = [
                    sys.executable,
                    "-m",
                    "onnxprune",
                    str(source),
                    f"--sparsity={sparsity}",
                    "--no-cache",
                ]
                command += [*arguments, "--min-size=1", "--force", "-o", str(output)]
            else:
                command = onnxsim_command(
                    ONNXSIM[name], task, source, output, sparsity, samples, Path(folder)
                )
            seconds, peak, error = measured(command)
            table.add_row(name, *row(output, layers, metric, error), f"{seconds:.0f}", f"{peak:.1f}")
    Console(width=110).print(table)


def row(output: Path, layers: list[Layer], metric: object, error: str) -> tuple[str, str, str]:
    """Return (zeros, metric, MB) of a pruned file, measured the same way for everyone."""
    if not output.exists():
        return "", error[-60:], ""
    value = task_metric(metric, runtime.session(output))  # type: ignore[arg-type]
    found = load(output)
    unpack(found)
    arrays = {name: found.array(name) for name in found.index.tensors}
    shapes = {layer.view.stored for layer in layers}
    counted = [a for a in arrays.values() if a.shape in shapes and a.dtype.kind == "f"]
    used = sum(layer.size for layer in layers)
    zeros = sum(int(a.size - np.count_nonzero(a)) for a in counted)
    return f"{min(1.0, zeros / used):.1%}", f"{value:.2f}", f"{total_bytes(output) / 1e6:.1f}"


def onnxsim_command(
    call: str, task: Path, source: Path, output: Path, sparsity: float, samples: int, folder: Path
) -> list[str]:
    """Return the command that runs one onnxsim call in its own environment, on the same samples."""
    model = load(source)
    recipe = Recipe(data=f"{task / 'task.py'}:calibration", samples=samples)
    for number, batch in enumerate(load_data(model, recipe).batches):
        np.savez(folder / f"feed{number:04}.npz", **batch)
    plain = folder / "plain.onnx"
    save(model, plain, force=True)
    code = f"""
        import glob, numpy, onnx, onnxsim
        s, m = {sparsity}, onnx.load({str(plain)!r})
        d = [dict(numpy.load(f)) for f in sorted(glob.glob({str(folder / "feed*.npz")!r}))]
        onnx.save({call}, {str(output)!r})
    """
    return [os.environ["ONNXSIM_PYTHON"], "-c", textwrap.dedent(code)]


def measured(command: list[str]) -> tuple[float, float, str]:
    """Run a command; return wall seconds, peak memory in GB and the last line of its errors."""
    code = (
        "import json, resource, subprocess, sys, time\n"
        "start = time.time()\n"
        "quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE, 'text': True}\n"
        "p = subprocess.run(json.loads(sys.argv[1]), **quiet)\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6\n"
        "lines = p.stderr.strip().splitlines() or ['']\n"
        "print(json.dumps([time.time() - start, peak, lines[-1] if p.returncode else '']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(command)], check=True, capture_output=True, text=True
    )
    seconds, peak, error = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), float(peak), str(error)


if __name__ == "__main__":
    main()
