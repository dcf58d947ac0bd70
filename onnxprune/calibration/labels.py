"""Labels of samples: found beside the inputs, checked, and kept with their samples.

While samples are chosen and batched, a sample's labels travel among its arrays under :data:`LABELS`; what is
fed to ONNX Runtime never holds them, see :func:`take`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.calibration.inputs import Array, Feed, Inputs, is_float
from onnxprune.errors import DataError, UsageError

LABELS = ""  # ONNX leaves no input without a name
IGNORED = -100  # a class number that stands for "no label here", as in torch


def labelled(inputs: Inputs, key: str | None) -> Inputs:
    """Return ``inputs`` with labels from the array ``key`` beside them; as they are when it is None.

    Raises:
        UsageError: when ``key`` is an input of the model.
    """
    if key is None:
        return inputs
    if any(spec.name == key for spec in inputs.specs):
        raise UsageError(
            f"--labels is {key!r}, which is an input of the model", "name the array that holds the labels"
        )
    batched = inputs.batched | {LABELS} if inputs.batched else inputs.batched
    return replace(inputs, batched=batched, labels=key)


def find(found: Mapping[str, Any], key: str, where: str) -> Any:
    """Return ``found[key]``.

    Raises:
        DataError: when there is none; the message lists what there is.
    """
    if key not in found:
        raise DataError(
            f"{where}: no labels {key!r}; found {', '.join(map(str, found)) or 'nothing'}",
            "--labels names the array with one entry per sample",
        )
    return found[key]


def layout(
    shape: tuple[int, ...], count: int, where: str, *, stack: tuple[int, ...] = (), alone: bool = False
) -> tuple[int, ...]:
    """Return the shape that labels must have for axis 0 to be the ``count`` samples.

    Args:
        shape: as found.
        count: samples that the inputs hold.
        where: what messages call the labels.
        stack: (feeds, rows of each) when the inputs are a stack of batches.
        alone: the inputs are those of one sample without a batch axis.

    Raises:
        DataError: when the labels are not one per sample.
    """
    if alone or (not shape and count == 1):
        return (1, *shape)
    if shape[:1] == (count,):
        return shape
    if stack and shape[:2] == stack:
        return (count, *shape[2:])
    raise DataError(
        f"{where} are of shape [{','.join(map(str, shape))}], wanted one entry for each of {count} samples "
        "on the first axis"
    )


def checked(array: Array, where: str) -> Array:
    """Return labels as int64 (class numbers; also bool) or float32 (values).

    Raises:
        DataError: for text and the like, NaN and infinity, and numbers that are too large.
    """
    if array.dtype.kind in "biu":
        if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise DataError(f"{where} hold {array.max()}, too large for a class number")
        return array.astype(np.int64)
    if not is_float(array.dtype):
        raise DataError(f"{where} are {array.dtype.name}, wanted class numbers (integers) or floats")
    with np.errstate(over="ignore"):
        result: Array = np.asarray(array).astype(np.float32)
    bad = ~np.isfinite(result)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"{where} hold {array[first]} at {list(first)} ({int(bad.sum())} values are not finite)",
            f"leave these samples out; class numbers of {IGNORED} are ignored",
        )
    return result


def take(batches: Iterable[Feed]) -> tuple[tuple[Feed, ...], tuple[Array, ...]]:
    """Return the batches without their labels, and the labels of each; none when they have none."""
    held = tuple(batches)
    labels = tuple(np.asarray(batch[LABELS]) for batch in held if LABELS in batch)
    return tuple({n: a for n, a in batch.items() if n != LABELS} for batch in held), labels


def put(batches: Sequence[Feed], labels: Sequence[Array]) -> tuple[Feed, ...]:
    """Return the batches with their labels among the arrays, the inverse of :func:`take`."""
    if not labels:
        return tuple(batches)
    return tuple({**batch, LABELS: own} for batch, own in zip(batches, labels, strict=True))


def check_alike(labels: Sequence[Array], where: str) -> None:
    """Raise DataError unless all batches' labels are of one type and rank."""
    kinds = {(array.dtype.name, array.ndim) for array in labels}
    if len(kinds) > 1:
        found = " and ".join(f"{name} with {rank} dimensions" for name, rank in sorted(kinds))
        raise DataError(f"{where}: labels differ in kind from sample to sample: {found}")
