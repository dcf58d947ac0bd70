"""How far one output is from another, as a number that adds over batches: arrays in, float out.

Used to measure how much each layer moves the model's output, and by :mod:`onnxprune.evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.outputs import EXACT, NONE, PROBABILITIES, OutputKind, is_float

Array = NDArray[Any]

# One row adds at most 27.6 nats: a softmax that underflows to 0 must not outweigh all other rows.
_FLOOR = 1e-12
_CHUNK = 1 << 20  # class scores per step: bounds the temporaries of a 150,000-token vocabulary


def divergence(reference: Array, value: Array, kind: OutputKind) -> float:
    """Return how far ``value`` is from ``reference``, summed over rows, so that batches add.

    Classes: KL(reference || value) in nats. Features: ||a - b||^2 / ||a||^2 times the number of rows; where
    they have parts, the mean of theirs.
    Exact values: the share of elements that differ times the number of rows. A different shape counts
    as 1 per row, NaN or infinity in one of the two as infinity, "not compared" as 0.

    Args:
        reference: the dense model's output, any rank, float32 (other types are converted).
        value: the other model's.
        kind: of the output.
    """
    if kind.family == NONE:
        return 0.0
    rows = len(reference) if reference.ndim else 1
    if reference.shape != value.shape:
        return float(rows)
    if kind.family == EXACT:
        return rows * float(np.mean(reference != value)) if reference.size else 0.0
    a, b = as_floats(reference), as_floats(value)
    if kind.classes:
        total = float(row_kl(class_rows(a, kind.axis), class_rows(b, kind.axis), kind).sum())
        return total if math.isfinite(total) else math.inf
    parts = zip(kind.parts(a.shape), kind.floors(a.shape), strict=True)
    errors = [_relative_error(a[part], b[part], floor) for part, floor in parts]
    return rows * sum(errors) / len(errors)


def _relative_error(a: Array, b: Array, floor: float) -> float:
    """Return ``||a - b||^2 / ||a||^2``, the mean square of a being ``floor`` at least."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = a - b
    if not np.isfinite(difference).all():  # two equal infinities, as in masked scores, agree
        same = a == b
        difference, a = np.where(same, 0, difference), np.where(same & ~np.isfinite(a), 0, a)
    error, norm = square_sum(difference), max(square_sum(a), floor * a.size)
    if not math.isfinite(error):
        return math.inf
    return error / norm if norm > 0 else float(error > 0)


def total_divergence(
    kinds: Sequence[OutputKind],
    reference: Sequence[Any],
    value: Sequence[Any],
    mask: NDArray[np.bool_] | None = None,
) -> float:
    """Add up :func:`divergence` over the outputs of a model that count.

    Beside class outputs, the others' are brought to nats first, see :mod:`onnxprune.answers`.

    Args:
        kinds: one per output.
        reference: the dense model's outputs of one batch.
        value: the other model's.
        mask: ``(batch, tokens)``, True where a token counts; see ``onnxprune.calibration.mask``.
    """
    beside = any(kind.classes for kind in kinds)
    total = shares = nats = 0.0
    for kind, first, second in zip(kinds, reference, value, strict=True):
        if kind.family == NONE or not kind.counts:
            continue
        a, own = without_padding(first, kind, mask)
        if beside and not kind.classes and is_float(a.dtype) and not np.isfinite(as_floats(a)).all():
            continue  # moving an infinity would outweigh every answer
        moved = divergence(a, without_padding(second, kind, mask)[0], own)
        if beside and not kind.classes:
            shares += moved / (max(len(a), 1) if a.ndim else 1)
            continue
        total += moved
        if kind.information:
            nats += kind.information * a.size / max(a.shape[own.axis], 1)
    return total + (shares * nats if shares and nats else 0.0)


def as_floats(value: Array) -> Array:
    """Return ``value`` as float32 (or float64, if it is that)."""
    return value if value.dtype in (np.float32, np.float64) else value.astype(np.float32)


def square_sum(value: Array) -> float:
    """Sum of squares, in float64."""
    flat = value.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def class_rows(value: Array, axis: int) -> Array:
    """Return ``value`` as (rows, classes)."""
    return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])


def row_kl(a: Array, b: Array, kind: OutputKind) -> NDArray[np.float64]:
    """KL(a || b) of each row in nats, float64; ``a`` and ``b`` are (rows, classes)."""
    step = max(1, _CHUNK // max(1, a.shape[1]))
    kernel = _kl_probabilities if kind.family == PROBABILITIES else _kl_logits
    parts = [kernel(a[i : i + step], b[i : i + step]) for i in range(0, len(a), step)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _kl_logits(a: Array, b: Array) -> NDArray[np.float64]:
    """Softmax both, then sum p (log p - log q), written so that rounding vanishes with a - b."""
    floor = math.log(_FLOOR)
    with np.errstate(invalid="ignore"):  # a row of -inf or NaN stays NaN; the callers count it
        a = np.maximum(a - a.max(axis=1, keepdims=True), floor)
        b = np.maximum(b - b.max(axis=1, keepdims=True), floor)
    exp_a = np.exp(a)
    sum_a, sum_b = exp_a.sum(axis=1, dtype=np.float64), np.exp(b).sum(axis=1, dtype=np.float64)
    cross: NDArray[np.float64] = np.einsum("ij,ij->i", exp_a, a - b, dtype=np.float64)
    result: NDArray[np.float64] = np.maximum(cross / sum_a - np.log(sum_a) + np.log(sum_b), 0.0)
    return result


def _kl_probabilities(a: Array, b: Array) -> NDArray[np.float64]:
    """Sum p log(p / q) - p + q: the last two cancel the rounding of rows that do not quite sum to one."""
    p, q = np.maximum(a, _FLOOR), np.maximum(b, _FLOOR)
    with np.errstate(invalid="ignore", divide="ignore"):
        cross: NDArray[np.float64] = np.einsum("ij,ij->i", p, np.log(p / q), dtype=np.float64)
        surplus = q.sum(axis=1, dtype=np.float64) - p.sum(axis=1, dtype=np.float64)
        result: NDArray[np.float64] = np.maximum(cross + surplus, 0.0)
    return result


def without_padding(value: Any, kind: OutputKind, mask: NDArray[np.bool_] | None) -> tuple[Any, OutputKind]:
    """Take padded tokens out of an output that has a row per token.

    Args:
        value: ``(batch, tokens, ..., width)``, ``(batch * tokens, ..., width)``, or exact values
            ``(batch, tokens)``; anything else comes back as it is.
        kind: of the output.
        mask: ``(batch, tokens)``, True where a token counts; None for no padding.

    Returns:
        ``(rows, width)``, and the kind with the class axis of that.
    """
    if mask is None or not isinstance(value, np.ndarray):
        return value, kind
    if kind.family == EXACT and value.shape == mask.shape:
        return value[mask], kind
    if (kind.classes or kind.cuts) and kind.axis % value.ndim != value.ndim - 1:
        return value, kind
    from onnxprune.calibration.mask import apply_row_mask

    keep = apply_row_mask(value, mask)
    if keep is None:
        return value, kind
    return value.reshape(-1, value.shape[-1])[keep], replace(kind, axis=-1)
