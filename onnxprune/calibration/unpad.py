"""Leave out the padding of token inputs: it costs as much as text and counts for nothing.

Samples padded to one length (each to 128 tokens, say) are often more padding than text. Where an
attention mask says which tokens are real, samples are cut to them and joined with others of like length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import labels
from onnxprune.calibration.batching import assemble, row_count
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.inputs import Array, Feed, Inputs, InputSpec
from onnxprune.calibration.mask import row_mask

# Outputs for real tokens may differ by this share of the largest value when padding goes: rounding, also in
# fp16. A model that looks at its padding is far above.
TOLERANCE = 2e-3
WORTH = 0.1  # least share of padding that is worth another order of the samples


def unpad(data: CalibrationData, specs: Iterable[InputSpec], session: Any) -> CalibrationData:
    """Return ``data`` without padding at the end of samples, or ``data`` itself where that is not safe.

    It is safe when a mask (:func:`~onnxprune.calibration.mask.row_mask`) marks the ends of samples, every
    input along the same axis is filled there with one value, and the dense model gives the same outputs
    for the real tokens of the most padded sample without them. Labels of tokens are cut as well, and filled
    with :data:`~onnxprune.calibration.labels.IGNORED` (values: with 0, where the mask says padding).

    Args:
        data: checked batches.
        specs: of the model's inputs.
        session: of the dense model.
    """
    if data.fixed is not None or (data.batched is not None and not data.batched):
        return data
    rows = list(_rows(data))
    masks = [row_mask(row) for row in rows]
    lengths = _lengths(masks)
    if lengths is None:
        return data
    given = np.array([row_length(mask) for mask in masks])
    if 1 - lengths.sum() / given.sum() < WORTH:
        return data
    padding = _padding(rows, masks, lengths, list(specs))
    if not padding or not padding.keys() <= _batched(data):
        return data
    short = [_cut(row, padding, int(length)) for row, length in zip(rows, lengths, strict=True)]
    worst = int(np.argmax(given - lengths))
    outputs = _outputs(session, rows[worst], short[worst])
    if outputs is None or not all(_close(a, b, int(lengths[worst])) for a, b in outputs):
        return data
    inputs = Inputs((), _batched(data), None)
    limit = max(row_count(batch, inputs) for batch in data.batches)
    if data.labels:
        own = [entry[None] for array in data.labels for entry in array]
        if all(_along(entry, mask) for entry, mask in zip(own, masks, strict=True)):
            cut = {b.shape[1] < a.shape[1] for a, b in outputs if a.shape[1:2] == (given[worst],)}
            if len(cut) > 1:
                return data  # labels of tokens, or of something else that is as long
            if True in cut:
                own = [entry[:, :length] for entry, length in zip(own, lengths, strict=True)]
                padding[labels.LABELS] = labels.IGNORED if own[0].dtype.kind == "i" else 0.0
        short, inputs = list(labels.put(short, own)), labels.labelled(inputs, "labels")
    batches, found = labels.take(assemble(short, inputs, limit, padding, data.source))
    return replace(data, batches=batches, as_given=data.batches, labels=found)


def row_length(mask: NDArray[np.bool_] | None) -> int:
    """Return the tokens of a single sample's mask, padding included."""
    return 0 if mask is None else mask.shape[1]


def _batched(data: CalibrationData) -> frozenset[str]:
    return data.batched if data.batched is not None else frozenset(n for b in data.batches[:1] for n in b)


def _rows(data: CalibrationData) -> Iterable[Feed]:
    """Yield single samples."""
    batched = _batched(data)
    for batch in data.batches:
        for row in range(row_count(batch, Inputs((), batched, None))):
            yield {n: a[row : row + 1] if n in batched else a for n, a in batch.items()}


def _lengths(masks: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.int64] | None:
    """Return the real tokens of each sample, None unless they all stand before the padding."""
    lengths = []
    for mask in masks:
        if mask is None or len(mask) != 1:
            return None
        length = int(mask.sum())
        if not length or not mask[0, :length].all():
            return None
        lengths.append(length)
    return np.array(lengths, dtype=np.int64)


def _padding(
    rows: Sequence[Feed],
    masks: Sequence[NDArray[np.bool_] | None],
    lengths: NDArray[np.int64],
    specs: Sequence[InputSpec],
) -> dict[str, float]:
    """Return the inputs to be cut along axis 1 and the value of their padding; nothing when in doubt."""
    names = [s for s in specs if all(_along(row.get(s.name), m) for row, m in zip(rows, masks, strict=True))]
    if any(isinstance(d, int) for spec in names for d in spec.shape[1:2]):
        return {}  # the model fixes the length
    symbols = {spec.shape[1] for spec in names if len(spec.shape) > 1} - {None}
    chosen = {spec.name for spec in names}
    for spec in specs:  # the same length somewhere else: a square mask, a cache, a second text
        others = spec.shape[2:] if spec.name in chosen else spec.shape
        if symbols & set(others):
            return {}
    fills: dict[str, float] = {}
    for name in sorted(chosen):
        ends = [row[name][0, length:] for row, length in zip(rows, lengths, strict=True)]
        values = np.unique(np.concatenate([end.ravel() for end in ends]))
        if values.dtype.kind not in "biuf" or len(values) != 1:
            return {}  # positions, for one, go on in the padding
        fills[name] = float(values[0])
    return fills


def _along(array: Array | None, mask: NDArray[np.bool_] | None) -> bool:
    """Whether axis 1 of a sample's array is the one that the mask speaks of."""
    return array is not None and mask is not None and array.ndim > 1 and array.shape[:2] == mask.shape


def _cut(row: Feed, padding: dict[str, float], length: int) -> Feed:
    return {name: np.array(a[:, :length]) if name in padding else a for name, a in row.items()}


def _outputs(session: Any, padded: Feed, short: Feed) -> list[tuple[Any, Any]] | None:
    """Return what the model gives for both, output by output; None when it cannot run one of them."""
    try:
        return list(zip(session.run(None, padded), session.run(None, short), strict=True))
    except Exception:  # ORT raises many private classes: a model that wants its padding keeps it
        return None


def _close(a: Any, b: Any, length: int) -> bool:
    """Whether an output is the same for the real tokens."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.ndim != b.ndim:
        return False
    if a.shape != b.shape:
        if a.ndim < 2 or b.shape[1] != length:
            return False
        a = a[:, :length]
    if a.shape != b.shape or a.dtype.kind not in "biuf":
        return False
    a, b = a.astype(np.float64), b.astype(np.float64)
    largest = np.abs(a).max(initial=0.0)
    return bool(np.isfinite(a).all() and np.abs(a - b).max(initial=0.0) <= TOLERANCE * largest)
