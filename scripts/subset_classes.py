"""Prune for some of the classes: importance from the user's own labelled data.

A user who only ever sees the digits 0 to 4 gives samples of these, and their labels, and prunes hard. What
matters for them is kept. The table compares their accuracy with that of pruning on all ten digits, at the
same sparsity, with the same number of samples and the same criterion::

    python scripts/subset_classes.py [--sparsity 0.9] [--criteria fisher taylor obs+fisher]

``own`` counts an answer as right when it is the best of the five digits (the others cannot occur), ``top-1``
when it is the best of all ten. Samples come from half of ``samples/digits_test.npz``, the accuracy from the
other half, over several draws of the halves.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import onnxprune

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
KEPT = 5  # digits below this are the user's
GRADIENTS = ("gradient", "fisher", "taylor", "adaptive")


def halves(seed: int) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return labelled images to prune with and others to judge by."""
    with np.load(SAMPLES / "digits_test.npz") as data:
        found = {name: data[name] for name in ("image", "label")}
    order = np.random.default_rng(seed).permutation(len(found["label"]))
    middle = len(order) // 2
    return tuple({n: a[part] for n, a in found.items()} for part in (order[:middle], order[middle:]))  # type: ignore[return-value]


def only(data: dict[str, NDArray[Any]], chosen: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the samples that are chosen."""
    return {name: array[chosen] for name, array in data.items()}


def judged(path: Path, data: dict[str, NDArray[Any]]) -> tuple[float, float]:
    """Return accuracy on the user's digits in percent: among themselves, among all ten."""
    mine = only(data, data["label"] < KEPT)
    logits = onnxprune.session(path).run(None, {"image": mine["image"]})[0]
    own, all_ten = logits[:, :KEPT].argmax(1), logits.argmax(1)
    return 100 * float((own == mine["label"]).mean()), 100 * float((all_ten == mine["label"]).mean())


def pruned(data: dict[str, NDArray[Any]], criterion: str, options: argparse.Namespace, path: Path) -> None:
    """Prune the sample model with ``data``."""
    labels = "label" if any(name in criterion for name in GRADIENTS) else None
    onnxprune.prune(
        SAMPLES / "digits_cnn.onnx",
        path,
        data=data if labels else {"image": data["image"]},
        criterion=criterion,
        labels=labels,
        sparsity=options.sparsity,
        allocation=options.allocation,
        refit=options.refit,
        target_runtime="stock",
        cache=False,
        force=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--criteria", nargs="+", default=["fisher", "taylor", "obs", "obs+fisher"])
    parser.add_argument("--allocation", default="sensitivity")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--refit", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    print(
        f"digits 0 to {KEPT - 1} of digits_cnn, {options.sparsity:.0%} zeros, mean of {options.seeds} draws"
    )
    print("| criterion | pruned with | own | top-1 |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        for criterion in options.criteria:
            rows: dict[str, list[tuple[float, float]]] = {"all ten digits": [], f"digits 0 to {KEPT - 1}": []}
            for seed in range(options.seeds):
                known, judges = halves(seed)
                mine = only(known, known["label"] < KEPT)
                equal = only(known, np.arange(len(known["label"])) < len(mine["label"]))
                for name, data in zip(rows, (equal, mine), strict=True):
                    pruned(data, criterion, options, path)
                    rows[name].append(judged(path, judges))
            for name, found in rows.items():
                own, all_ten = np.mean(found, axis=0)
                print(f"| {criterion} | {name} | {own:.1f} | {all_ten:.1f} |", flush=True)


if __name__ == "__main__":
    main()
