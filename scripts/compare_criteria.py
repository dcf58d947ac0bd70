"""Criteria and allocations on one model, at several sparsities and patterns, as a table.

python scripts/compare_criteria.py MODEL.onnx --data DATA --eval FILE.py:function
    [--criteria obs fisher obs+fisher ...] [--allocations sensitivity erk ...]
    [--configs 0.5 0.7 2:4 block:4x1@0.7 ...] [--no-refit] [--exclude GLOB] [--seeds 0 1] [--results FILE]

Each cell is the task metric (mean over the seeds). With --results every run is kept in a file as it ends, and
not repeated when the script is started again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import onnxprune
from onnxprune.recipe.choices import ALLOCATIONS
from onnxprune.recipe.mixture import CRITERIA

CONFIGS = ("0.5", "0.7", "0.8", "2:4", "block:4x1@0.7")


def settings(config: str) -> dict[str, object]:
    """Return the recipe's fields for ``0.7``, ``2:4`` or ``block:4x1@0.7``."""
    pattern, _, sparsity = config.rpartition("@")
    if not pattern and ":" in config:
        return {"pattern": config}
    return {"pattern": pattern or "unstructured", "sparsity": float(sparsity)}


class Runs:
    """Prunes once for each setting, or reads what an earlier start of the script found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.path = Path(options.results) if options.results else None
        lines = self.path.read_text().splitlines() if self.path and self.path.exists() else []
        self.known = {key: value for key, value in map(json.loads, lines)}

    def metric(self, criterion: str, allocation: str, config: str, seed: int) -> float:
        """Return the task metric after pruning; the dense one for the criterion ``dense``."""
        options = self.options
        key = json.dumps([options.model, criterion, allocation, config, seed, options.no_refit])
        if key not in self.known:
            report = onnxprune.prune(
                options.model,
                dry_run=True,
                data=options.data,
                eval=options.eval,
                exclude=tuple(options.exclude),
                criterion=criterion,
                allocation=allocation,
                refit=not options.no_refit,
                seed=seed,
                target_runtime="stock",
                **settings(config),
            )
            self.known[key] = [report.metric_before, report.metric_after]
            if self.path:
                with self.path.open("a") as file:
                    file.write(json.dumps([key, self.known[key]]) + "\n")
        self.dense, after = self.known[key]
        return float(after)


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
    parser.add_argument("--no-refit", action="store_true", help="the textbook forms, without repair")
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results")
    options = parser.parse_args()
    runs = Runs(options)
    print(f"| criterion | allocation | {' | '.join(options.configs)} |")
    print(f"| --- | --- |{' --- |' * len(options.configs)}")
    for criterion in options.criteria:
        for allocation in options.allocations:
            cells = [
                mean(runs.metric(criterion, allocation, config, seed) for seed in options.seeds)
                for config in options.configs
            ]
            print(
                f"| {criterion} | {allocation} | {' | '.join(f'{cell:.2f}' for cell in cells)} |", flush=True
            )
    print(f"\n{options.model}: dense {runs.dense:.2f}, seeds {' '.join(map(str, options.seeds))}")


if __name__ == "__main__":
    main()
