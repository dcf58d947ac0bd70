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
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.divergence import as_floats, class_rows, without_padding
from onnxprune.layers.find import is_matrix
from onnxprune.model import Model, needed_nodes
from onnxprune.outputs import NONE, PROBABILITIES, OutputKind, is_float, output_kind

LEAST = 0.02  # of the information that a class output can have
ROWS = 256  # that tell the information, of batches as long as there are fewer
MOST_ROWS = 4096  # of one batch: an image may have thousands of places
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Mask = NDArray[np.bool_] | None
Batch = tuple[Mapping[str, Any], Mask]  # the dense model's values, and which of their tokens are real


def output_kinds(
    values: Mapping[str, Any], model: Model | None = None, *, mask: Mask = None, more: Iterable[Batch] = ()
) -> dict[str, OutputKind]:
    """Decide how the outputs of a model can be compared, and which of them count.

    Args:
        values: what the dense model gave for one batch.
        model: the dense model; without it class outputs speak for all others.
        mask: ``(batch, tokens)`` of that batch, True where a token is real.
        more: other batches; looked at only where something counts beside classes.

    Returns:
        One entry for each value. Of outputs beside classes ``counts`` says whether they have weights that no
        class output depends on (and are finite, and follow from the inputs); where any counts, the class
        outputs get their ``information``. A weight split between classes and others is not told apart.
    """
    kinds = {name: output_kind(name, value, model) for name, value in values.items()}
    answers = [name for name, kind in kinds.items() if kind.classes]
    others = [name for name, kind in kinds.items() if not kind.classes and kind.family != NONE]
    if not answers or not others:
        return kinds
    seen = _weights(model, answers) if model is not None else set()
    for name in others:
        own = model is not None and not _weights(model, [name]) <= seen
        finite = _finite(values[name])
        why = "" if own and finite else "; not finite, does not count" if own else "; classes speak for it"
        kinds[name] = replace(kinds[name], counts=own and finite, reason=kinds[name].reason + why)
    if any(kinds[name].counts for name in others):
        known = _enough(chain([(values, mask)], more), {name: kinds[name] for name in answers})
        for name in answers:
            kinds[name] = replace(kinds[name], information=information(known[name]))
    return kinds


def information(rows: NDArray[np.float64]) -> float:
    """Return the mean KL divergence of distributions from their mean, in nats.

    At least :data:`LEAST` of the most that it can be, the logarithm of the number of classes: the samples may
    be of one class. All of that for fewer than two rows, which say nothing.

    Args:
        rows: (rows, classes) probabilities.
    """
    most = math.log(max(rows.shape[1], 2))
    if len(rows) < 2:
        return most
    rows = np.maximum(rows, np.finfo(np.float64).tiny)
    found = float((rows * (np.log(rows) - np.log(rows.mean(axis=0)))).sum(axis=1).mean())
    return max(found, LEAST * most)


def distributions(value: NDArray[Any], kind: OutputKind, mask: Mask = None) -> NDArray[np.float64]:
    """Return the probabilities of a class output, (rows, classes), :data:`MOST_ROWS` of them at most.

    Rows that are not finite, and padded tokens, are left out.
    """
    value, kind = without_padding(value, kind, mask)
    rows = class_rows(as_floats(value), kind.axis)
    rows = rows[:: max(1, -(-len(rows) // MOST_ROWS))].astype(np.float64)
    if kind.family != PROBABILITIES:
        with np.errstate(invalid="ignore"):
            rows = np.exp(rows - rows.max(axis=1, keepdims=True, initial=-np.inf))
    total = rows.sum(axis=1)
    good = np.isfinite(total) & (total > 0)
    return np.asarray(rows[good] / total[good, None])


def _enough(batches: Iterable[Batch], kinds: Mapping[str, OutputKind]) -> dict[str, NDArray[np.float64]]:
    """Gather rows of class outputs from as many batches as :data:`ROWS` takes; classes may be positions."""
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in kinds}
    for values, mask in batches:
        for name, rows in found.items():
            fresh = distributions(values[name], kinds[name], mask)
            if not rows or fresh.shape[1] == rows[0].shape[1]:
                rows.append(fresh)
        if min(sum(map(len, rows)) for rows in found.values()) >= ROWS:
            break
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _finite(value: Any) -> bool:
    return not is_float(value.dtype) or bool(np.isfinite(as_floats(value)).all())


def _weights(model: Model, outputs: Iterable[str]) -> set[str]:
    """Return the matrices that some outputs depend on, if they depend on an input at all.

    A matrix has two axes longer than one, or is what a linear operator multiplies with.
    """
    _, reads = needed_nodes(model, (), outputs)
    index = model.index
    if reads.isdisjoint(index.inputs.keys() - index.tensors.keys()):
        return set()
    nodes = model.graph.node
    return {
        name
        for name in index.tensors.keys() & reads
        if is_matrix(index.tensors[name])
        or any(use.slot == 1 and nodes[use.index].op_type in LINEAR for use in index.uses.get(name, ()))
    }
