"""Does the training view compute what ONNX Runtime computes, and does the gradient reach every weight?

    python scripts/parity.py MODEL.onnx [--data DATA] [--samples 256]

For each output: the largest difference over all batches, divided by the batch's largest value: view against
ONNX Runtime; ONNX Runtime against itself without graph optimisation, which is what float32 rounding alone
does to this model; and both against the view in float64. The median over batches stands behind each maximum.
Then, of the prunable layers that influence an output, how many weights get a gradient from these samples.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from onnxprune import load
from onnxprune.calibration.data import load_data
from onnxprune.finetune.view import TorchView
from onnxprune.layers.find import find_layers
from onnxprune.recipe import Recipe
from onnxprune.runtime import session

Array = NDArray[Any]
PAIRS = (
    ("view", "runtime"),
    ("runtime, not optimised", "runtime"),
    ("runtime", "float64"),
    ("view", "float64"),
)


def answers(view: TorchView, feed: Mapping[str, Array], dtype: torch.dtype) -> dict[str, Array]:
    """Run the view without gradients."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in feed.items()}
    with torch.no_grad():
        found = view({n: x.to(dtype) if x.is_floating_point() else x for n, x in tensors.items()})
    return {name: x.numpy() for name, x in found.items()}


def distance(a: Array, b: Array) -> float:
    """Return the largest difference over the largest value of ``b``."""
    scale = float(np.abs(b).max(initial=0.0)) or 1.0
    return float(np.abs(a.astype(np.float64) - b).max(initial=0.0)) / scale


def reached(view: TorchView, weights: list[str], feeds: list[Mapping[str, Array]]) -> int:
    """Count the weights with a gradient other than zero for random directions of the outputs."""
    names = set(weights)
    for feed in feeds:
        found = view({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in feed.items()})
        parts = [(x * torch.randn_like(x)).sum() for x in found.values() if x.requires_grad]
        view.zero_grad(set_to_none=True)
        torch.stack(parts).sum().backward()
        names = {n for n in names if (grad := view.weights[n].grad) is None or not grad.any()}
    return len(weights) - len(names)


@click.command(help=__doc__)
@click.argument("path")
@click.option("--data", help="As for onnxprune; default: made up.")
@click.option("--samples", default=256, show_default=True)
def main(path: str, data: str | None, samples: int) -> None:
    """Print one line for each output and pair, then the count."""
    model = load(path)
    feeds = list(load_data(model, Recipe(data=data, samples=samples)).batches)
    plain, optimised = session(path, optimize=False), session(path)
    view, exact = TorchView(model), TorchView(model).double()
    found: dict[tuple[str, str, str], list[float]] = {}
    for feed in feeds:
        runs = {
            "runtime": dict(zip(view.outputs, optimised.run(view.outputs, feed), strict=True)),
            "runtime, not optimised": dict(zip(view.outputs, plain.run(view.outputs, feed), strict=True)),
            "view": answers(view, feed, torch.float32),
            "float64": answers(exact, feed, torch.float64),
        }
        for name in view.outputs:
            for a, b in PAIRS:
                found.setdefault((name, a, b), []).append(distance(runs[a][name], runs[b][name]))
    for (name, a, b), values in found.items():
        middle = statistics.median(values)
        click.echo(f"{name:24s} {f'{a} - {b}':42s} {max(values):8.1e} (median {middle:.1e})")
    layers, _ = find_layers(model)
    names = sorted({layer.name for layer in layers} & view.weights.keys())
    click.echo(f"gradient reaches {reached(view, names, feeds[:4])} of {len(names)} prunable weights")


if __name__ == "__main__":
    main()
