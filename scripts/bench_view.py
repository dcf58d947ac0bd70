#!/usr/bin/env python3
"""Cost of a training step through the torch view of an ONNX graph, against the same network in plain torch.

Both run in one process on one thread, in turns; the ratio is of neighbours in time. The plain networks
compute what the graph does: convolutions with the normalisation folded in, attention written out.
"""

# ruff: noqa: D102 - "forward" says it

from __future__ import annotations

import io
import statistics
import time
import warnings
from collections.abc import Callable, Mapping

import click
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxprune.finetune.view import TorchView
from onnxprune.model import Model


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.short(x))


def resnet20() -> nn.Module:
    """The network for CIFAR-10, normalisation folded in."""
    widths = [(16, 16, 1)] * 3 + [(16, 32, 2), *[(32, 32, 1)] * 2, (32, 64, 2), *[(64, 64, 1)] * 2]
    blocks = [Block(*width) for width in widths]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), *blocks, *head)


class Layer(nn.Module):
    """One layer of an encoder, its attention written out as exporters write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        weight = (q @ k.transpose(-1, -2) / self.size**0.5).softmax(-1)
        mixed = (weight @ v).transpose(1, 2).reshape(x.shape)
        x = self.first(x + self.o(mixed))
        return self.second(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """A small BERT."""

    def __init__(self, width: int = 256, layers: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(1000, width), nn.Parameter(torch.randn(64, width))
        self.layers = nn.Sequential(*(Layer(width, 4) for _ in range(layers)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.words(tokens) + self.places[: tokens.shape[1]])


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet-20, batch 1": lambda: (resnet20(), torch.randn(1, 3, 32, 32)),
    "ResNet-20, batch 24": lambda: (resnet20(), torch.randn(24, 3, 32, 32)),
    "BERT, 4 x 256, batch 1 x 16": lambda: (Encoder(), torch.randint(0, 1000, (1, 16))),
    "BERT, 4 x 256, batch 8 x 64": lambda: (Encoder(), torch.randint(0, 1000, (8, 64))),
}


def exported(module: nn.Module, x: Tensor, opset: int, dynamo: bool) -> TorchView:
    """Export the module and load it as a view."""
    file = io.BytesIO()
    shapes = {"dynamic_axes": {"x": {0: "batch"}}} if not dynamo else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (x,), file, input_names=["x"], opset_version=opset, dynamo=dynamo, verbose=False, **shapes
        )
    return TorchView(Model(onnx.load_from_string(file.getvalue())))


def timed(call: Callable[[], Tensor], module: nn.Module, target: Tensor) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    module.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss = F.mse_loss(call(), target)
    middle = time.perf_counter()
    loss.backward()
    return middle - start, time.perf_counter() - middle


def measure(name: str, opset: int, dynamo: bool, rounds: int) -> str:
    """Return the line of the table for one network."""
    torch.manual_seed(0)
    module, x = NETWORKS[name]()
    view = exported(module.eval(), x, opset, dynamo)
    (output,) = view.outputs
    target = torch.randn_like(module(x))
    calls = {"torch": (lambda: module(x), module), "view": (lambda: view({"x": x})[output], view)}
    error = (calls["view"][0]() - module(x)).abs().max() / module(x).abs().max()
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in calls}
    for i in range(rounds + 3):
        for kind, (call, owner) in calls.items() if i % 2 else reversed(calls.items()):
            took = timed(call, owner, target)
            if i >= 3:  # the first rounds fill caches
                found[kind].append(took)
    pairs = zip(found["view"], found["torch"], strict=True)
    ratios = sorted(sum(a) / sum(b) for a, b in pairs)
    low, high = ratios[len(ratios) // 4], ratios[len(ratios) * 3 // 4]

    def middle(kind: str, part: slice) -> float:
        return 1e3 * statistics.median(sum(took[part]) for took in found[kind])

    forward, backward = slice(0, 1), slice(1, 2)
    return (
        f"{name:30s} {len(view._plan.block.steps):6d} {middle('torch', slice(None)):9.2f} "
        f"{middle('view', slice(None)):9.2f} {statistics.median(ratios):6.3f} [{low:.3f}, {high:.3f}] "
        f"{middle('view', forward) / middle('torch', forward):8.3f} "
        f"{middle('view', backward) / middle('torch', backward):8.3f} {error:9.1e}"
    )


@click.command(help=__doc__)
@click.option("--rounds", default=40, show_default=True, help="Paired steps of each network.")
@click.option("--opset", default=17, show_default=True)
@click.option("--dynamo", is_flag=True, help="Export with the newer exporter (opset 18 and above).")
def main(rounds: int, opset: int, dynamo: bool) -> None:
    """Print one line for each network."""
    torch.set_num_threads(1)
    click.echo(
        f"{'network':30s} {'steps':>6s} {'torch ms':>9s} {'view ms':>9s} {'ratio':>6s} {'[quartiles]':14s} "
        f"{'forward':>8s} {'backward':>8s} {'error':>9s}"
    )
    for name in NETWORKS:
        click.echo(measure(name, opset, dynamo, rounds))


if __name__ == "__main__":
    main()
