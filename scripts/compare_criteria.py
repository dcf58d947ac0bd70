"""Criteria and allocations on one model, at several sparsities and patterns, as a table.

python scripts/compare_criteria.py MODEL.onnx --data DATA --eval FILE.py:function
    [--criteria obs fisher obs+fisher ...] [--allocations sensitivity erk ...]
    [--configs 0.5 0.7 2:4 block:4x1@0.7 ...] [--attention off token ...] [--no-refit] [--exclude GLOB]
    [--seeds 0 1] [--threads 1] [--results FILE]

Each cell is the task metric, and the divergence from the dense model on what the --eval function runs (KL in
nats or relative squared error, per row); means over the seeds, with more than two of them the standard
deviation of the metric as well. With --results every run is kept in a file as it ends, and not repeated when
the script is started again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import onnxprune
from onnxprune import runtime
from onnxprune.answers import output_kinds
from onnxprune.calibration.mask import row_mask
from onnxprune.divergence import total_divergence
from onnxprune.evaluate import load_function, task_metric
from onnxprune.io import load
from onnxprune.recipe.choices import ALLOCATIONS
from onnxprune.recipe.mixture import CRITERIA

CONFIGS = ("0.5", "0.7", "0.8", "2:4", "block:4x1@0.7")


def settings(config: str) -> dict[str, object]:
    """Return the recipe's fields for ``0.7``, ``2:4`` or ``block:4x1@0.7``."""
    pattern, _, sparsity = config.rpartition("@")
    if not pattern and ":" in config:
        return {"pattern": config}
    return {"pattern": pattern or "unstructured", "sparsity": float(sparsity)}


class Recorder:
    """A session that keeps what it answered."""

    def __init__(self, path: Path, threads: int) -> None:
        self.session = runtime.session(path, threads=threads)
        self.answers: list[tuple[list[Any], Any]] = []  # outputs of a batch, which of its tokens are real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, names: Any, feeds: dict[str, Any], *rest: Any) -> list[Any]:
        """Run all outputs; return those that are asked for."""
        every = [output.name for output in self.session.get_outputs()]
        found = self.session.run(every, feeds, *rest)
        self.answers.append((found, row_mask(feeds)))
        return [found[every.index(name)] for name in names or every]


class Runs:
    """Prunes once for each setting, or reads what an earlier start of the script found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.path = Path(options.results) if options.results else None
        lines = self.path.read_text().splitlines() if self.path and self.path.exists() else []
        self.known = {key: value for key, value in map(json.loads, lines)}
        self.function = load_function(options.eval)
        dense = Recorder(Path(options.model), options.threads)
        self.dense = float(task_metric(self.function, dense))
        self.answers = dense.answers
        model = load(options.model)
        (first, mask), *more = [
            (dict(zip(model.index.outputs, found, strict=True)), real) for found, real in dense.answers
        ]
        self.kinds = list(output_kinds(first, model, mask=mask, more=more).values())

    def cell(self, criterion: str, allocation: str, attention: str, config: str) -> str:
        """Return a cell of the table."""
        runs = [self.run(criterion, allocation, attention, config, seed) for seed in self.options.seeds]
        metrics, moved = zip(*runs, strict=True)
        spread = f" ± {stdev(metrics):.2f}" if len(metrics) > 2 else ""
        return f"{mean(metrics):.2f}{spread}, {mean(moved):.3g}"

    def run(self, *setting: Any) -> tuple[float, float]:
        """Return task metric and divergence of (criterion, allocation, attention, config, seed)."""
        options = self.options
        key = json.dumps([options.model, *setting, options.no_refit, options.exclude, options.threads])
        if key not in self.known:
            self.known[key] = self._measured(*setting)
            if self.path:
                with self.path.open("a") as file:
                    file.write(json.dumps([key, self.known[key]]) + "\n")
        metric, moved = self.known[key]
        return metric, moved

    def _measured(
        self, criterion: str, allocation: str, attention: str, config: str, seed: int
    ) -> tuple[float, float]:
        options = self.options
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "pruned.onnx"
            onnxprune.prune(
                options.model,
                output,
                data=options.data,
                exclude=tuple(options.exclude),
                criterion=criterion,
                allocation=allocation,
                attention=(attention,),
                refit=not options.no_refit,
                seed=seed,
                threads=options.threads,
                target_runtime="stock",
                **settings(config),
            )
            pruned = Recorder(output, options.threads)
            metric = float(task_metric(self.function, pruned))
        moved = sum(
            total_divergence(self.kinds, reference, found, real)
            for (reference, real), (found, _) in zip(self.answers, pruned.answers, strict=True)
        )
        return metric, moved / sum(len(found[0]) for found, _ in self.answers)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--eval", required=True)
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA))
    parser.add_argument("--allocations", nargs="+", default=list(ALLOCATIONS))
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    parser.add_argument("--attention", nargs="+", default=["off"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-refit", action="store_true", help="the textbook forms, without repair")
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results")
    options = parser.parse_args()
    runs = Runs(options)
    print(f"{options.model}: dense {runs.dense:.2f}, seeds {' '.join(map(str, options.seeds))}\n")
    print(f"| criterion | allocation | attention | {' | '.join(options.configs)} |")
    print(f"| --- | --- | --- |{' --- |' * len(options.configs)}")
    for criterion in options.criteria:
        for allocation in options.allocations:
            for attention in options.attention:
                cells = [runs.cell(criterion, allocation, attention, config) for config in options.configs]
                print(f"| {criterion} | {allocation} | {attention} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
