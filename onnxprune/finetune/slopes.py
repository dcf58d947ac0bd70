"""Gradients of a whole model's weights, sample by sample: of its own answers, or of the loss on labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onnxprune.answers import output_kinds
from onnxprune.calibration import labels
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.mask import row_mask
from onnxprune.errors import ModelError
from onnxprune.finetune.batches import tensors
from onnxprune.finetune.dtypes import FLOATS
from onnxprune.finetune.gradients import Gradients, LossOf, collect, own_answers
from onnxprune.finetune.task import find_task
from onnxprune.finetune.view import TorchView
from onnxprune.model import Model


def slopes(
    model: Model,
    names: Sequence[str],
    data: CalibrationData,
    count: int,
    *,
    key: str | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Gradients:
    """Return gradient statistics of weights of a model.

    Args:
        model: the model.
        names: of the weights.
        data: samples, with a batch axis in every input.
        count: samples to use at most, spread evenly over all.
        key: array that the data's labels came from: the loss is the one on them
            (:class:`~onnxprune.finetune.task.Task`); None: that of answers drawn from the model itself.
        seed: of these answers.
        threads: of torch; None: one. Single samples are small work, for which threads mostly wait for each
            other: with two on two busy processors CIFAR ResNet-20 took over five times as long as with one.

    Raises:
        DataError: when the labels fit no output.
        ModelError: when torch cannot run the model, or no output depends smoothly on a weight.
    """
    kinds = {name: value.type.tensor_type.elem_type for name, value in model.index.outputs.items()}
    outputs = [name for name, kind in kinds.items() if kind in FLOATS]
    view = TorchView(model, outputs=outputs, trainable=names)
    for name in names:
        if name not in view.weights or not view.weights[name].requires_grad:
            raise ModelError(
                f"no output depends smoothly on weight {name!r}", f"leave it alone with --exclude '{name}'"
            )
    few, before = data.head(count), torch.get_num_threads()
    torch.set_num_threads(threads or 1)
    try:
        return collect(view, labels.put(few.batches, few.labels), _loss(model, view, data, key, seed), names)
    finally:
        torch.set_num_threads(before)


def _loss(model: Model, view: TorchView, data: CalibrationData, key: str | None, seed: int) -> LossOf:
    with torch.no_grad():
        values = {name: value.numpy() for name, value in view(tensors(data.batches[0])).items()}
    kinds = output_kinds(values, model)
    if key is None:
        return own_answers(kinds, seed)
    task = find_task(key, data, None, values, kinds)

    def loss(outputs: Mapping[str, Tensor], feeds: Mapping[str, Tensor]) -> Tensor:
        mask = row_mask({name: value.numpy() for name, value in feeds.items() if name != labels.LABELS})
        real = None if mask is None else torch.from_numpy(mask)
        return task(outputs[task.output], feeds[labels.LABELS], real)

    return loss
