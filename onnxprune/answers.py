"""Which outputs speak for a model, and how much a loss in one weighs beside a loss in another.

Class outputs say what a model answers; hidden states, embeddings and caches that lead to them move long
before the answers do, and are spoken for by them. An output with weights of its own, such as the boxes beside
a detector's scores, is not: what is lost there shows nowhere else.

Both kinds are brought to one unit: an output of features that loses all of its energy costs what class
outputs cost that lose all of their information, the mean KL divergence of their rows from the mean row (the
mutual information of sample and class).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.divergence import as_floats, class_rows
from onnxprune.layers.find import QUANTIZED
from onnxprune.layers.layer import FLOATS
from onnxprune.model import Model, needed_nodes
from onnxprune.outputs import NONE, PROBABILITIES, OutputKind, output_kind

LEAST = 0.02  # of the information that a class output can have


def output_kinds(values: Mapping[str, Any], model: Model | None = None) -> dict[str, OutputKind]:
    """Decide how the outputs of a model can be compared, and which of them count.

    Args:
        values: what the dense model gave for one batch.
        model: the dense model; without it class outputs speak for all others.

    Returns:
        One entry for each value. Of outputs beside classes ``counts`` says whether they have weights that no
        class output depends on; where any have, the class outputs get their ``information``.
    """
    kinds = {name: output_kind(name, value, model) for name, value in values.items()}
    answers = [name for name, kind in kinds.items() if kind.classes]
    others = [name for name, kind in kinds.items() if not kind.classes and kind.family != NONE]
    if not answers or not others:
        return kinds
    seen = _weights(model, answers) if model is not None else set()
    for name in others:
        own = model is not None and not _weights(model, [name]) <= seen
        kinds[name] = replace(kinds[name], counts=own)
    if any(kinds[name].counts for name in others):
        for name in answers:
            kinds[name] = replace(kinds[name], information=information(values[name], kinds[name]))
    return kinds


def information(value: NDArray[Any], kind: OutputKind) -> float:
    """Return the mean KL divergence of the rows of a class output from their mean, in nats.

    At least :data:`LEAST` of the most that it can be, the logarithm of the number of classes: a batch may
    have one class. All of that for one row, which says nothing.
    """
    rows = class_rows(as_floats(value), kind.axis).astype(np.float64)
    if kind.family != PROBABILITIES:
        rows = np.exp(rows - rows.max(axis=1, keepdims=True))
    rows = np.maximum(rows, np.finfo(np.float64).tiny)
    rows /= rows.sum(axis=1, keepdims=True)
    most = math.log(max(rows.shape[1], 2))
    if len(rows) < 2:
        return most
    found = float((rows * (np.log(rows) - np.log(rows.mean(axis=0)))).sum(axis=1).mean())
    return max(found, LEAST * most) if math.isfinite(found) else most


def _weights(model: Model, outputs: Iterable[str]) -> set[str]:
    """Return the weights of two axes and more that some outputs depend on."""
    _, reads = needed_nodes(model, (), outputs)
    tensors = model.index.tensors
    found = {name for name in tensors.keys() & reads if len(tensors[name].dims) > 1}
    return {name for name in found if tensors[name].data_type in FLOATS | QUANTIZED}
