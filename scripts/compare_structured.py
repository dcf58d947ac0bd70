"""Make a model smaller by structured pruning at several budgets; print accuracy, size and measured speed.

    scripts/compare_structured MODEL --data DATA --eval FILE.py:function [--finetune --minutes N]

makes environments for onnxsim and, with --torch FILE.py:make (see scripts/resnet20_torch.py), Torch-Pruning,
and puts both beside onnxprune, all with one thread. This file alone leaves out what has no environment, see
scripts/structured_peers.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from structured_peers import ONNXSIM, TORCH_PRUNING, done, onnxsim, torch_pruning

from onnxprune import runtime
from onnxprune.calibration.data import load_data
from onnxprune.evaluate import load_function, task_metric
from onnxprune.io import load, save, total_bytes
from onnxprune.kernels.feeds import typical_feeds
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.slim.gains import measured_speed, multiplications
from onnxprune.slim.summary import parameters

Row = tuple[str, Path, str]  # title, file, error

# The program, with limits of time that go by the processor: other work on the machine does not count
_BY_PROCESSOR = """
import sys, time
import onnxprune.clock
onnxprune.clock.now = time.process_time
from onnxprune.cli import main
sys.exit(main(sys.argv[1:]))
"""


def main() -> None:
    """Print the table, each row as soon as it is there."""
    options = arguments()
    dense = load(options.model)
    data = load_data(dense, Recipe(data=options.data, samples=options.samples))
    judge = Judge(dense, typical_feeds(data)[:1], load_function(options.eval))
    table = Table(title=f"{options.model}, {options.samples} unlabelled samples")
    for name in ("method", "metric", "multiplications", "parameters", "MB", "speed"):
        table.add_column(name, justify="left" if name == "method" else "right")

    def add(method: str, path: Path, error: str = "") -> None:
        row = (method, *judge.row(path, error))
        print("\t".join(row), file=sys.stderr, flush=True)
        table.add_row(*row)

    add("dense", options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(dense, folder / "plain.onnx", force=True)
        for row in ours(options, folder):
            add(*row)
        if "onnxsim" in options.peers and os.environ.get("ONNXSIM_PYTHON"):
            for number, batch in enumerate(data.batches):
                np.savez(folder / f"feed{number:04}.npz", **batch)  # type: ignore[arg-type]
            for row in by_onnxsim(options, folder, judge):
                add(*row)
        if "torch-pruning" in options.peers and options.torch and os.environ.get("TORCH_PRUNING_PYTHON"):
            (key,) = dense.index.inputs
            np.save(folder / "inputs.npy", np.concatenate([batch[key] for batch in data.batches]))
            for row in by_torch_pruning(options, folder):
                add(*row)
    Console(width=130).print(table)


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", required=True)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--factors", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--pattern", default="structured")
    parser.add_argument("--finetune", action="store_true", help="and train, for --minutes")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training, all rounds together")
    parser.add_argument("--rounds", type=int, default=1, help="of pruning and training, on either side")
    parser.add_argument("--processor", action="store_true", help="minutes are of the processor, one thread")
    parser.add_argument(
        "--torch", help="FILE.py:make, returns (torch module, example inputs) for the ONNX file"
    )
    parser.add_argument(
        "--methods", default=",".join(TORCH_PRUNING), help="of Torch-Pruning, comma-separated"
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of Torch-Pruning's training")
    parser.add_argument("--batch", type=int, default=16, help="samples in a batch of that training")
    parser.add_argument("--peers", default="onnxsim,torch-pruning", help="to stand beside, if they are there")
    parser.add_argument("options", nargs="*", help="more options of onnxprune, behind --")
    return parser.parse_args()


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
            speed = measured_speed(self.dense, model, self.feeds, 1)[1]
            fewer = f"{self.less(path):.2f}x fewer"
        except Exception as failure:  # what a peer wrote may fail in any way
            return f"does not run: {str(failure)[:40]}", "", "", "", ""
        megabytes = f"{total_bytes(path) / 1e6:.2f}"
        return f"{value:.2f}", fewer, f"{parameters(model) / 1e3:.0f} k", megabytes, f"{speed:.2f}x"


def ours(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Run onnxprune; yield a row for each model, which the next one replaces."""
    output = folder / "ours.onnx"
    start = ["-c", _BY_PROCESSOR, "prune"] if options.processor else ["-m", "onnxprune", "prune"]
    training = ["--finetune", "--minutes", str(options.minutes)]
    training += ["--schedule", f"cubic:{options.rounds}"] if options.rounds > 1 else []
    for factor in options.factors:
        for title, more in (("", []), (", trained", training))[: 1 + options.finetune]:
            output.unlink(missing_ok=True)
            command = [
                *(sys.executable, *start, str(options.model), "-o", str(output), "--threads", "1", "--force"),
                *("--pattern", options.pattern, "--budget", "flops", "--sparsity", f"{1 - 1 / factor:.4f}"),
                *("--data", options.data, "--samples", str(options.samples), *more, *options.options),
            ]
            yield f"onnxprune{title}, {factor:g}x fewer", output, done(command)[1]


def by_onnxsim(options: argparse.Namespace, folder: Path, judge: Judge) -> Iterator[Row]:
    """Run onnxsim's functions; yield a row for each model, which the next one replaces."""
    for title, call in ONNXSIM.items():
        for factor in options.factors:
            error = onnxsim(call, factor, folder, judge.less)
            yield f"{title}, {factor:g}x fewer", folder / "peer.onnx", error


def by_torch_pruning(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Run Torch-Pruning; yield a row for each model, which the next one replaces."""
    training = ["--minutes", str(options.minutes), "--rounds", str(options.rounds)]
    training += ["--rate", str(options.rate), "--batch", str(options.batch)]
    training += ["--processor"] if options.processor else []
    for method in options.methods.split(","):
        for factor in options.factors:
            title = f"Torch-Pruning {method}, {factor:g}x fewer"
            _, error = torch_pruning(method, factor, folder, options.torch, [])
            yield title, folder / "peer.onnx", error
            if options.finetune and not error:
                said, error = torch_pruning(method, factor, folder, options.torch, training)
                steps = "" if error else f" {json.loads(said)['steps']} steps"
                yield f"{title}, trained{steps}", folder / "peer.tuned.onnx", error


if __name__ == "__main__":
    main()
