"""Make a torch module smaller with Torch-Pruning, distil it, and write ONNX files; one thread.

Run by scripts/compare_structured.py in an environment of its own. A method is criterion-scope-way:

    magnitude, taylor, hessian: Torch-Pruning's group importances. Labels, where gradients need them, are the
        dense model's answers: its classes for Taylor, classes drawn by its probabilities for the Hessian (its
        diagonal is estimated by the squares of the gradients, as Torch-Pruning does).
    global, uniform: channels of all groups ranked together, or the same share of each group.
    oneshot, iterative: one ranking, at the share that a bisection finds; or a percent of the channels at a
        time with new gradients each time, which is what Torch-Pruning's own benchmark does.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F
from torch_distill import distill, divergence

IMPORTANCE: dict[str, Any] = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
}
TRIES, PERCENTS, MOST_GRADIENTS = 10, 100, 256
Gradients = dict[str, Tensor]


def main() -> None:
    """Write PREFIX.onnx, and with minutes PREFIX.tuned.onnx; print what was done as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the dense model as ONNX")
    parser.add_argument("prefix")
    parser.add_argument("--make", required=True, help="FILE.py:function, see scripts/resnet20_torch.py")
    parser.add_argument("--inputs", required=True, help=".npy with the samples of the model's only input")
    parser.add_argument("--method", required=True)
    parser.add_argument("--factor", type=float, required=True, help="times fewer multiplications")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=1, help="of pruning and training")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--processor", action="store_true", help="minutes of the processor's time")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dense, example = load_function(options.make)(options.model)
    peer = Peer(dense, example, torch.from_numpy(np.load(options.inputs)), options.method)
    module, steps, begin = copy.deepcopy(dense), 0, time.process_time()
    for number in range(1, options.rounds + 1):
        done = 1 - (1 - number / options.rounds) ** 3  # Zhu & Gupta (2017), as in onnxprune --schedule cubic
        module = peer.prune(module, peer.products(dense) * (1 - done * (1 - 1 / options.factor)))
        if options.rounds == 1:
            export(module, example, options.model, f"{options.prefix}.onnx")
        if options.minutes:
            seconds = 60 * options.minutes / options.rounds
            how = {"rate": options.rate, "size": options.batch, "processor": options.processor}
            steps += distill(module, dense, peer.inputs, seconds, **how)
    if options.minutes:
        export(module, example, options.model, f"{options.prefix}.tuned.onnx")
    found = {"steps": steps, "kl": peer.loss(module), "seconds": time.process_time() - begin}
    print(json.dumps(found))


class Peer:
    """Torch-Pruning with one method.

    Args:
        dense: classifier, (N, ...) to (N, classes).
        example: its arguments.
        inputs: samples.
        method: criterion-scope-way.
    """

    def __init__(self, dense: nn.Module, example: tuple[Tensor, ...], inputs: Tensor, method: str) -> None:
        self.dense, self.example, self.inputs = dense.eval(), example, inputs
        self.criterion, self.scope, self.way = method.split("-")
        with torch.no_grad():
            self.answers = torch.cat([dense(part) for part in inputs.split(64)])
        self.drawn = torch.multinomial(self.answers.softmax(1), 1)[:, 0]
        classes = self.answers.shape[1]  # what gives them stays
        layers = dense.named_modules()
        self.kept = [n for n, m in layers if isinstance(m, nn.Linear) and m.out_features == classes]

    def prune(self, module: nn.Module, products: float) -> nn.Module:
        """Return a smaller copy with at most so many multiplications."""
        return (
            self._iterative(module, products) if self.way == "iterative" else self._oneshot(module, products)
        )

    def _oneshot(self, module: nn.Module, products: float) -> nn.Module:
        gradients = self.gradients(module)
        low, high, found = 0.0, 1.0, module
        for _ in range(TRIES):
            ratio = (low + high) / 2
            smaller = copy.deepcopy(module)
            put(smaller, gradients)
            self.pruner(smaller, ratio, 1).step()
            if self.products(smaller) <= products:
                high, found = ratio, smaller
            else:
                low = ratio
        return found

    def _iterative(self, module: nn.Module, products: float) -> nn.Module:
        smaller = copy.deepcopy(module)
        pruner = self.pruner(smaller, 1.0, PERCENTS)
        while self.products(smaller) > products and pruner.current_step < PERCENTS:
            put(smaller, self.gradients(smaller))
            pruner.step()
        return smaller

    def pruner(self, module: nn.Module, ratio: float, steps: int) -> Any:
        """Return Torch-Pruning's pruner of a module."""
        return tp.pruner.BasePruner(
            module,
            self.example,
            IMPORTANCE[self.criterion](),
            global_pruning=self.scope == "global",
            pruning_ratio=ratio,
            iterative_steps=steps,
            ignored_layers=[module.get_submodule(name) for name in self.kept],
        )

    def gradients(self, module: nn.Module) -> Gradients:
        """Return what the criterion finds in ``weight.grad``: the gradient, or the mean of its squares."""
        if self.criterion == "magnitude":
            return {}
        inputs, total = self.inputs[:MOST_GRADIENTS], Gradients()
        labels = self.answers.argmax(1) if self.criterion == "taylor" else self.drawn
        size = 64 if self.criterion == "taylor" else 1
        for x, y in zip(inputs.split(size), labels[: len(inputs)].split(size), strict=True):
            module.zero_grad()
            F.cross_entropy(module(x), y).backward()
            for name, weight in module.named_parameters():
                # GroupHessianImportance.accumulate_grad of 1.6.1 keeps the last sample only: summed here
                found = weight.grad * len(x) if self.criterion == "taylor" else weight.grad.square()
                total[name] = total.get(name, 0) + found / len(inputs)
        return total

    def products(self, module: nn.Module) -> float:
        """Return the multiplications of the convolutions and linear layers."""
        counts: list[int] = []

        def count(layer: Any, _: Any, output: Tensor) -> None:
            counts.append(output[0].numel() * layer.weight[0].numel())

        layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        hooks = [layer.register_forward_hook(count) for layer in layers]
        with torch.no_grad():
            module(*self.example)
        for hook in hooks:
            hook.remove()
        return float(sum(counts))

    @torch.no_grad()
    def loss(self, module: nn.Module) -> float:
        """Return how far the answers are from the dense model's on the samples as they are, in nats."""
        answers = torch.cat([module(part) for part in self.inputs.split(64)])
        return float(divergence(answers, self.answers))


def put(module: nn.Module, gradients: Gradients) -> None:
    """Put gradients where Torch-Pruning looks for them."""
    for name, weight in module.named_parameters():
        weight.grad = gradients[name].clone() if name in gradients else None


def export(module: nn.Module, example: tuple[Tensor, ...], dense: str, path: str) -> None:
    """Write the module with the names of the dense model's inputs and outputs."""
    graph = onnx.load(dense).graph
    inputs, outputs = ([item.name for item in items] for items in (graph.input, graph.output))
    axes = {name: {0: "N"} for name in (*inputs, *outputs)}
    torch.onnx.export(
        module.eval(),
        example,
        path,
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )


def load_function(text: str) -> Any:
    """Return the function that FILE.py:function names."""
    path, _, name = text.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


if __name__ == "__main__":
    main()
