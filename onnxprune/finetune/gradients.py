"""What the gradient of a loss says about every weight: the raw material of gradient-based criteria.

Sources: diagonal empirical Fisher, Theis et al., "Faster gaze prediction with dense networks and Fisher
pruning" (2018); first-order Taylor, Molchanov et al., "Importance Estimation for Neural Network Pruning"
(2019). The loss needs no labels: a model is at the minimum of its own distillation loss, where only second
moments are left, so the answers are drawn from the model itself (the true, not the empirical, Fisher).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxprune.errors import DataError
from onnxprune.finetune.batches import Feed, tensors
from onnxprune.finetune.view import TorchView
from onnxprune.outputs import PROBABILITIES, OutputKind

Array = NDArray[np.float64]
LossOf = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]  # (outputs, feeds) -> scalar


@dataclass(frozen=True)
class Gradients:
    """Sums over samples; those of two shards add.

    Attributes:
        samples: how many.
        first: weight name -> sum of the gradients, in the weight's shape.
        second: weight name -> sum of their squares: the diagonal of the Fisher matrix.
        taylor: weight name -> sum of ``|w g|``.
        activations: value name -> sum over samples of the squared gradient with respect to it, per channel.
    """

    samples: int
    first: dict[str, Array]
    second: dict[str, Array]
    taylor: dict[str, Array]
    activations: dict[str, Array]

    def __add__(self, other: Gradients) -> Gradients:
        """Merge two shards."""

        def both(a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
            return {name: a[name] + b[name] for name in a}

        return Gradients(
            self.samples + other.samples,
            both(self.first, other.first),
            both(self.second, other.second),
            both(self.taylor, other.taylor),
            both(self.activations, other.activations),
        )


def collect(
    view: TorchView,
    batches: Iterable[Feed],
    loss: LossOf,
    weights: Sequence[str],
    activations: Sequence[str] = (),
) -> Gradients:
    """Return gradient statistics of ``weights``, one backward pass for each sample.

    Args:
        view: its outputs must hold what ``loss`` reads and ``activations``.
        batches: feeds whose axis 0 is the sample, in every input.
        loss: see :func:`own_answers`, or a task loss; of one sample.
        weights: names of trained weights of the view.
        activations: values, channels on axis 1 (on the last axis up to rank 3).

    Raises:
        DataError: when the inputs of a batch differ in their number of samples.
    """
    chosen = {name: view.weights[name] for name in weights}
    first = {name: np.zeros(tuple(w.shape)) for name, w in chosen.items()}
    second, taylor = ({name: a.copy() for name, a in first.items()} for _ in range(2))
    channels: dict[str, Array] = {}
    count = 0
    for batch in batches:
        rows = {len(array) for array in batch.values()}
        if len(rows) != 1:
            raise DataError(f"gradients need one row per sample in every input, found {sorted(rows)} rows")
        for row in range(rows.pop()):
            feeds = tensors({name: array[row : row + 1] for name, array in batch.items()})
            outputs = view(feeds)
            inner = [outputs[name] for name in activations]
            found = torch.autograd.grad(loss(outputs, feeds), [*chosen.values(), *inner], allow_unused=True)
            count += 1
            for (name, weight), g in zip(chosen.items(), found[: len(chosen)], strict=True):
                if g is None:  # this sample does not reach it
                    continue
                gradient = g.numpy().astype(np.float64)
                first[name] += gradient
                second[name] += gradient**2
                taylor[name] += np.abs(gradient * weight.detach().numpy())
            for name, g in zip(activations, found[len(chosen) :], strict=True):
                if g is not None:
                    channels[name] = channels.get(name, np.zeros(1)) + _per_channel(g)
    return Gradients(count, first, second, taylor, channels)


def own_answers(kinds: Mapping[str, OutputKind], seed: int = 0) -> LossOf:
    """Return the label-free loss: the model's negative log-likelihood of answers drawn from itself.

    Classes are drawn from the predicted distribution; other outputs get Gaussian noise of variance one as
    residual, so that the squared gradient estimates the diagonal of ``J^T J``.

    Args:
        kinds: output -> what it means.
        seed: of the draws.
    """
    random = torch.Generator().manual_seed(seed)

    def loss(outputs: Mapping[str, Tensor], feeds: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for name, kind in kinds.items():
            value = outputs[name].float()
            if kind.classes:
                rows = value.movedim(kind.axis, -1).reshape(-1, value.shape[kind.axis])
                scores = rows.clamp_min(1e-20).log() if kind.family == PROBABILITIES else rows.log_softmax(-1)
                drawn = torch.multinomial(scores.detach().exp(), 1, generator=random)
                parts.append(-scores.gather(-1, drawn).sum())
            else:
                noise = torch.randn(value.shape, generator=random)
                parts.append((value * noise).sum())
        return torch.stack(parts).sum()

    return loss


def _per_channel(gradient: Tensor) -> Array:
    axis = 1 if gradient.ndim > 3 else gradient.ndim - 1
    others = [k for k in range(gradient.ndim) if k != axis]
    return np.asarray(gradient.square().sum(others).numpy(), dtype=np.float64)
