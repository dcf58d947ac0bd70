"""Single samples of the sizes that count, for what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.calibration.data import CalibrationData

_SAMPLED = 16  # samples that are looked at for the sizes of the inputs


def typical_feeds(data: CalibrationData) -> list[Mapping[str, Any]]:
    """Return single samples: one of median size first, then the smallest and the largest if they differ."""
    if data.as_given:  # what the user pads now will be padded later
        data = replace(data, batches=data.as_given, as_given=(), labels=())
    samples = list(data.head(_SAMPLED * (data.fixed or 1)).batches)
    singles = [single for batch in samples for single in _singles(batch, data)]
    singles.sort(key=_size)
    middle = singles[len(singles) // 2]
    others = [feed for feed in (singles[0], singles[-1]) if _size(feed) != _size(middle)]
    return [middle, *others]


def extremes(feeds: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the smallest and the largest of :func:`typical_feeds`, or the one that there is."""
    return feeds[1:] if len(feeds) == 3 else feeds


def _singles(batch: Mapping[str, Any], data: CalibrationData) -> list[Mapping[str, Any]]:
    if data.fixed is not None or (data.batched is not None and not data.batched):
        return [batch]
    batched = data.batched if data.batched is not None else frozenset(batch)
    rows = min(len(batch[name]) for name in batched)
    return [
        {name: a[row : row + 1] if name in batched else a for name, a in batch.items()} for row in range(rows)
    ]


def _size(feed: Mapping[str, Any]) -> int:
    return sum(int(np.size(array)) for array in feed.values())
