"""Make a model smaller by structured pruning at several budgets; print accuracy, size and measured speed.

    scripts/compare_structured.py MODEL --data DATA --eval FILE.py:function [--finetune --minutes N]

With ONNXSIM_PYTHON (an interpreter that has onnxsim, see scripts/compare_peers) onnxsim's structured
functions stand beside it, at a sparsity that is searched for the same multiplications.
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
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from onnxprune import runtime
from onnxprune.calibration.data import load_data
from onnxprune.evaluate import load_function, task_metric
from onnxprune.io import load, save, total_bytes
from onnxprune.kernels.select import typical_feeds
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.slim.gains import measured_speed, multiplications
from onnxprune.slim.summary import parameters

PEERS = {
    "onnxsim structured": "onnxsim.apply_structured_pruning(m, sparsity=s, global_sparsity=True)",
    "onnxsim structured Wanda": (
        "onnxsim.apply_structured_wanda_pruning(m, calibration_data=d, sparsity=s, global_sparsity=True)"
    ),
    "onnxsim structured Wanda + finetune": (
        "onnxsim.apply_pruning_finetune(m, onnxsim.apply_structured_wanda_pruning("
        "m, calibration_data=d, sparsity=s, global_sparsity=True), calibration_data=d)"
    ),
    "onnxsim heads": "onnxsim.apply_attention_head_pruning(m, sparsity=s)",
}
_TRIES = 4  # sparsities that a peer is given to come near the multiplications wanted


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--factors", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--pattern", default="structured")
    parser.add_argument("--finetune", action="store_true")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("options", nargs="*", help="more options of onnxprune, behind --")
    options = parser.parse_args()
    table = Table(title=f"{options.model}, {options.samples} unlabelled samples")
    for name in ("method", "metric", "multiplications", "parameters", "MB", "speed"):
        table.add_column(name, justify="left" if name == "method" else "right")
    dense = load(options.model)
    data = load_data(dense, Recipe(data=options.data, samples=options.samples))
    judge = Judge(dense, typical_feeds(data)[:1], load_function(options.eval))
    table.add_row("dense", *judge.row(options.model))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for factor in options.factors:
            output = folder / f"{factor}.onnx"
            error = ours(options, factor, output)
            table.add_row(f"onnxprune, {factor:g}x fewer", *judge.row(output, error))
        if os.environ.get("ONNXSIM_PYTHON"):
            save(dense, folder / "plain.onnx", force=True)
            for number, batch in enumerate(data.batches):
                np.savez(folder / f"feed{number:04}.npz", **batch)  # type: ignore[arg-type]
            for title, call in PEERS.items():
                for factor in options.factors:
                    error = peer(call, factor, folder, judge)
                    table.add_row(f"{title}, {factor:g}x fewer", *judge.row(folder / "peer.onnx", error))
    Console(width=120).print(table)


class Judge:
    """Measures every model in the same way."""

    def __init__(self, dense: Model, feeds: Any, metric: Any) -> None:
        self.dense, self.feeds, self.metric = dense, feeds, metric

    def less(self, path: Path) -> float:
        """Return how many times fewer multiplications a model has."""
        return multiplications(self.dense, self.feeds) / multiplications(load(path), self.feeds)

    def row(self, path: Path, error: str = "") -> tuple[str, ...]:
        """Return metric, multiplications, parameters, size and speed with one thread."""
        if not path.exists():
            return error[-60:], "", "", "", ""
        try:
            model = load(path)
            value = task_metric(self.metric, runtime.session(path))
            count = multiplications(model, self.feeds)
            speed = measured_speed(self.dense, model, self.feeds, 1)[1]
        except Exception as failure:  # what a peer wrote may fail in any way
            return f"does not run: {str(failure)[:40]}", "", "", "", ""
        fewer = f"{multiplications(self.dense, self.feeds) / count:.2f}x fewer"
        megabytes = f"{total_bytes(path) / 1e6:.2f}"
        return f"{value:.2f}", fewer, f"{parameters(model) / 1e3:.0f} k", megabytes, f"{speed:.2f}x"


def ours(options: argparse.Namespace, factor: float, output: Path) -> str:
    """Run onnxprune; return the last line of what it complained about, "" when it did not."""
    command = [
        *(sys.executable, "-m", "onnxprune", str(options.model), "-o", str(output)),
        *("--pattern", options.pattern, "--budget", "flops", "--sparsity", f"{1 - 1 / factor:.4f}"),
        *("--data", options.data, "--samples", str(options.samples), *options.options),
    ]
    if options.finetune:
        command += ["--finetune", "--minutes", str(options.minutes)]
    return _failure(command)


def peer(call: str, factor: float, folder: Path, judge: Judge) -> str:
    """Leave a peer's model with about so many times fewer multiplications in ``folder``; return its error."""
    low, high, error = 0.0, 1.0, ""
    output = folder / "peer.onnx"
    output.unlink(missing_ok=True)
    for _ in range(_TRIES):
        sparsity = (low + high) / 2
        code = f"""
            import glob, numpy, onnx, onnxsim
            s, m = {sparsity}, onnx.load({str(folder / "plain.onnx")!r})
            d = [dict(numpy.load(f)) for f in sorted(glob.glob({str(folder / "feed*.npz")!r}))]
            onnx.save({call}, {str(output)!r})
        """
        error = _failure([os.environ["ONNXSIM_PYTHON"], "-c", textwrap.dedent(code)])
        try:
            reached = bool(not error and output.exists() and judge.less(output) >= factor)
        except Exception as failure:  # an invalid file
            return str(failure)
        low, high = (low, sparsity) if reached else (sparsity, high)
    return error


def _failure(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or [json.dumps(done.returncode)]
    return lines[-1] if done.returncode else ""


if __name__ == "__main__":
    main()
