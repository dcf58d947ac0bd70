"""All criteria on one model, repaired and not, as a table.

python scripts/compare_criteria.py MODEL.onnx --data DATA --eval FILE.py:function [--sparsity 0.7]
    [--criteria fisher obs+fisher ...] [--allocation sensitivity] [--exclude GLOB]
"""

from __future__ import annotations

import argparse

import onnxprune
from onnxprune.mixture import CRITERIA

MIXTURES = ("obs+fisher", "obs+taylor", "magnitude+taylor", "0.7*wanda+0.3*fisher")


def metric(options: argparse.Namespace, criterion: str, refit: bool) -> str:
    """Return the task metric before and after."""
    report = onnxprune.prune(
        options.model,
        dry_run=True,
        data=options.data,
        eval=options.eval,
        exclude=tuple(options.exclude),
        sparsity=options.sparsity,
        allocation=options.allocation,
        criterion=criterion,
        refit=refit,
        seed=options.seed,
        target_runtime="stock",
        cache=False,
    )
    return f"{report.metric_after:.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--eval", required=True)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--allocation", default="sensitivity")
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--criteria", nargs="+", default=[*CRITERIA, *MIXTURES])
    options = parser.parse_args()
    print(f"{options.model}, {options.sparsity:.0%}, {options.allocation}")
    print("| criterion | repaired | --no-refit |\n| --- | --- | --- |")
    for criterion in options.criteria:
        found = [metric(options, criterion, refit) for refit in (True, False)]
        print(f"| {criterion} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
