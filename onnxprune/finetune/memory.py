"""How many samples fit into a training batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxprune.errors import DataError, ModelError
from onnxprune.finetune.batches import Batches
from onnxprune.finetune.losses import Loss
from onnxprune.finetune.view import TorchView

BUDGET = 2 * 2**30  # bytes that the forward pass may keep for the backward pass


def saved_bytes(forward: Callable[[], Tensor], owned: set[int]) -> int:
    """Return the bytes that autograd keeps after ``forward()``.

    Args:
        forward: computes a loss.
        owned: addresses of storages that are there anyway (the weights).
    """
    seen: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        loss = forward()  # alive until counted: a freed address may come again
    total = sum(seen.values())
    del loss
    return total


def fitting(rows: int, size: int, wanted: int, budget: int = BUDGET) -> int:
    """Return how many samples fit, at least one and at most ``wanted``, if ``rows`` of them take ``size``."""
    return max(1, min(wanted, budget * rows // max(size, 1)))


def fit(batches: Batches, view: TorchView, loss: Loss, budget: int = BUDGET) -> None:
    """Make the training batches small enough, judged by what one sample takes.

    A model that does not run on one sample, because only its declared shapes leave the batch open, gets
    the batches as they came.
    """
    if batches.whole:
        return
    feeds, targets, mask = batches.get([batches.largest()])
    owned = {weight.untyped_storage().data_ptr() for weight in view.parameters()}
    try:
        size = saved_bytes(lambda: loss(view(feeds), targets, feeds, mask), owned)
    except (DataError, ModelError):
        batches.keep_whole()
        return
    batches.size = fitting(1, size, batches.size, budget)
