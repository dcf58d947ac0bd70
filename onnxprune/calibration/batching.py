"""Which samples are used, and how they become rectangular batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.inputs import Array, Feed, Inputs
from onnxprune.errors import DataError, ResourceError, UsageError

# A batch of this size keeps ONNX Runtime busy, and its activations are still moderate: some layers of a CNN
# have fifty times the bytes of its input. EfficientNet-Lite0 takes 3.4 GB with 16 images, 2.5 with 6.
AUTO_BATCH_ROWS = 16
AUTO_BATCH_BYTES = 4 * 2**20
# All chosen inputs are held in memory; more than this is a mistake in --samples or in the file.
MAX_DATA_BYTES = 4 * 2**30
# The way out where a model fails on a batch of several samples:
ONE_BY_ONE = "--batch-size 1 helps when the batch axis is dynamic in name only"


def choose(total: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Return ``min(total, wanted)`` indices below ``total``, ascending.

    One is drawn from each of ``wanted`` equal parts, so the choice covers the whole source, also one
    that is sorted by class, and is the same for the same seed.
    """
    if total <= wanted:
        return np.arange(total, dtype=np.int64)
    edges = np.arange(wanted + 1, dtype=np.int64) * total // wanted
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:], dtype=np.int64)


def check_memory(size: int, where: str) -> None:
    """Refuse chosen inputs that would not fit in memory.

    Raises:
        ResourceError: when ``size`` bytes are over :data:`MAX_DATA_BYTES`.
    """
    if size > MAX_DATA_BYTES:
        raise ResourceError(
            f"{where}: the chosen samples take {size / 2**30:.1f} GiB, "
            f"the limit is {MAX_DATA_BYTES / 2**30:.0f} GiB",
            "use fewer with --samples",
        )


def batch_rows(samples: Sequence[Feed], inputs: Inputs, wanted: int | None) -> int:
    """Return how many rows one batch gets at most.

    Raises:
        UsageError: when ``wanted`` differs from the model's fixed batch.
    """
    if inputs.fixed is not None:
        if wanted not in (None, inputs.fixed):
            raise UsageError(
                f"--batch-size is {wanted}, the model's batch is fixed at {inputs.fixed}",
                "leave --batch-size out",
            )
        return inputs.fixed
    if not inputs.batched:
        return 1
    if wanted is not None:
        return wanted
    largest = max((sum(a.nbytes for a in s.values()) for s in samples), default=1)
    return min(AUTO_BATCH_ROWS, max(1, AUTO_BATCH_BYTES // max(1, largest)))


def assemble(
    samples: Sequence[Feed], inputs: Inputs, limit: int, padding: Mapping[str, float], where: str
) -> tuple[Feed, ...]:
    """Join samples into batches of at most ``limit`` rows, or of exactly the model's fixed batch.

    Args:
        samples: pieces with a batch axis of one row, of ``inputs.fixed`` rows, or whole feeds.
        inputs: what the model wants.
        limit: rows of a batch.
        padding: inputs that may be padded at the end of axis 1, and with what. Samples are sorted by
            their length first, so that little is padded. When empty, only samples of equal shape
            (and equal values in inputs that all rows share) come into one batch.
        where: what messages call the source.

    Returns:
        The batches. Rows that do not fill a fixed batch are dropped, never padded.

    Raises:
        DataError: when not one fixed batch can be filled.
    """
    if not inputs.batched:
        return tuple(samples)
    batches: list[Feed] = []
    for group in _groups(samples, inputs, padding):
        if inputs.fixed is not None:
            full = [s for s in group if row_count(s, inputs) == inputs.fixed]
            single = [s for s in group if row_count(s, inputs) != inputs.fixed]
            single = single[: len(single) // inputs.fixed * inputs.fixed]
            batches.extend(full)
        else:
            single = group
        if padding:
            single = sorted(single, key=lambda s: _length(s, padding))  # stable: ties stay in order
        parts = (single[start : start + limit] for start in range(0, len(single), limit))
        batches.extend(join(part, inputs, padding) for part in parts)
    if not batches:
        count = sum(row_count(s, inputs) for s in samples)
        raise DataError(
            f"{where}: the model's batch is fixed at {inputs.fixed}, "
            f"no shape has so many of the {count} samples",
            f"give at least {inputs.fixed} samples",
        )
    return tuple(batches)


def rows_of(batches: Iterable[Feed], inputs: Inputs) -> int:
    """Return the number of samples in ``batches``."""
    return sum(row_count(b, inputs) for b in batches)


def row_count(sample: Feed, inputs: Inputs) -> int:
    """Return the rows of one sample or batch; 1 for a whole feed."""
    if not inputs.batched:
        return 1
    return int(sample[next(iter(inputs.batched))].shape[0])


def _length(sample: Feed, padding: Mapping[str, float]) -> int:
    return max(int(sample[name].shape[1]) for name in padding)


def _groups(samples: Sequence[Feed], inputs: Inputs, padding: Mapping[str, float]) -> list[list[Feed]]:
    """Samples that may share a batch, groups and members in order of first appearance."""
    groups: dict[tuple[object, ...], list[Feed]] = {}
    for sample in samples:
        groups.setdefault(batch_key(sample, inputs, padding), []).append(sample)
    return list(groups.values())


def batch_key(sample: Feed, inputs: Inputs, padding: Mapping[str, float]) -> tuple[object, ...]:
    """Return what samples must have in common to share a batch: shapes, and the values of shared inputs."""
    return tuple(
        (sample[n].shape[1:] if n not in padding else sample[n].shape[2:])
        if n in inputs.batched
        else _fingerprint(sample[n])
        for n in sorted(sample)
    )


def _fingerprint(array: Array) -> tuple[object, ...]:
    data = repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()
    return array.shape, hashlib.sha256(data).digest()


def join(samples: Sequence[Feed], inputs: Inputs, padding: Mapping[str, float]) -> Feed:
    """Return one batch of samples that have the same :func:`batch_key`."""
    batch: Feed = {}
    for name in samples[0]:
        arrays = [s[name] for s in samples]
        if name not in inputs.batched:
            batch[name] = arrays[0]
            continue
        if name in padding:
            longest = max(a.shape[1] for a in arrays)
            arrays = [pad_end(a, longest, padding[name]) for a in arrays]
        batch[name] = np.concatenate(arrays)
    return batch


def pad_end(array: Array, length: int, value: float) -> Array:
    """Return ``array`` with axis 1 filled up to ``length`` with ``value``."""
    missing = length - array.shape[1]
    if missing <= 0:
        return array
    widths = [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, widths, constant_values=value)
