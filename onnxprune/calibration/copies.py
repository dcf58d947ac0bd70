"""Changed copies of the samples, so that weights are fitted to more than was given.

The statistics of a layer are sums over samples, and the dense model answers for a mirrored image as well as
for the image: a copy costs a forward pass and no data. What it is worth is in ``docs/methods.md``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune.calibration.augment import fitting, make
from onnxprune.calibration.data import CalibrationData
from onnxprune.calibration.inputs import Feed

ENOUGH = 512  # samples, copies included
MOST = 3  # copies of each sample
MAX_BYTES = 2**30  # of the copies: they are held in memory


def with_copies(data: CalibrationData, names: tuple[str, ...], seed: int) -> CalibrationData:
    """Return ``data`` and changed copies of its samples; ``data`` itself where nothing fits.

    Args:
        data: checked batches.
        names: as :func:`onnxprune.calibration.augment.make` takes them; of ``auto`` only flips and shifts of
            square images: other tones, stretched text and mixtures made statistics no better.
        seed: of the changes.

    Raises:
        UsageError: for changes that do not go with the labels.
    """
    size = sum(array.nbytes for batch in data.batches for array in batch.values())
    count = min(MOST, ENOUGH // max(data.samples, 1) - 1, MAX_BYTES // max(size, 1))
    if data.synthetic or count < 1 or not data.batches:
        return data
    labels = data.labels[0] if data.labels else None
    if "auto" in names:
        found = fitting(data.batches[0], labels)
        names = tuple(sorted(found & {"flip", "shift"})) if "stretch" not in found else ()
    change = make(names, data.batches[0], labels)
    if change is None:
        return data
    added = f"{count} changed {'copy' if count == 1 else 'copies'} ({', '.join(names)})"
    random = np.random.default_rng(seed)
    copies = [dict(change(batch, random)) for _ in range(count) for batch in data.batches]
    if all(_same(copy, batch) for copy, batch in zip(copies, data.batches, strict=False)):  # no images
        return data
    return replace(
        data,
        batches=(*data.batches, *copies),
        samples=data.samples * (count + 1),
        labels=data.labels * (count + 1),
        source=f"{data.source}; and {added}",
    )


def _same(copy: Feed, batch: Feed) -> bool:
    return all(copy[name] is value or np.array_equal(copy[name], value) for name, value in batch.items())
