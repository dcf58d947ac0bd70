"""Samples from an iterable of unknown length: what a function yields, or what the Python API is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np

from onnxprune.calibration.batching import batch_key, check_memory, join, row_count
from onnxprune.calibration.checks import split_feed
from onnxprune.calibration.inputs import Feed, Inputs
from onnxprune.calibration.sources import Loaded, Request
from onnxprune.errors import DataError

# An iterator may be endless or decode each sample slowly: read this many times the samples wanted.
READ_FACTOR = 8


def collect(feeds: Iterable[Any], request: Request, where: str) -> Loaded:
    """Check every feed and keep a seeded, uniform choice of the samples (reservoir sampling).

    Sized iterables are read to the end; of an iterator at most :data:`READ_FACTOR` times the wanted
    samples are read.

    Args:
        feeds: dicts (a batch or a single sample each), or arrays for a model with one input.
        request: what is wanted.
        where: what messages call the source.

    Raises:
        DataError: when there is nothing in it, or a feed does not fit; the message counts feeds from 0.
    """
    inputs, wanted = request.inputs, request.pieces
    rng = np.random.default_rng(request.recipe.seed)
    cap = None if isinstance(feeds, Sized) else READ_FACTOR * wanted
    kept: list[tuple[int, Feed]] = []  # (position in the source, sample)
    seen = size = 0
    for piece in pieces(feeds, inputs, where):
        slot = seen if seen < wanted else int(rng.integers(seen + 1))
        if slot < wanted:
            # A copy, since a view keeps its whole batch alive.
            own = {n: np.array(a, order="C") for n, a in piece.items()}
            size += _size(own) - (_size(kept[slot][1]) if slot < len(kept) else 0)
            check_memory(size, where)
            kept[slot : slot + 1] = [(seen, own)]
        seen += 1
        if seen == cap:
            break
    samples = [sample for _, sample in sorted(kept, key=lambda entry: entry[0])]
    stopped = seen == cap and seen > wanted
    return Loaded(samples, seen * inputs.rows, ("reading stopped there",) if stopped else ())


def pieces(feeds: Iterable[Any], inputs: Inputs, where: str) -> Iterator[Feed]:
    """Yield the samples of all feeds; single rows are collected until they fill a batch the model fixes."""
    waiting: dict[tuple[object, ...], list[Feed]] = {}
    samples = found = 0
    for number, feed in enumerate(feeds):
        place = f"{where}, item {number}"
        for piece in split_feed(_as_mapping(feed, inputs, place), inputs, place):
            samples += row_count(piece, inputs)
            full = [piece]
            if inputs.batched and row_count(piece, inputs) < inputs.rows:
                full = waiting.setdefault(batch_key(piece, inputs, {}), [])
                full.append(piece)
                if len(full) < inputs.rows:
                    continue
            found += 1
            yield join(full, inputs, {}) if len(full) > 1 else piece
            full.clear()
    if not samples:
        raise DataError(f"{where} yields no samples", "it must give at least one dict of arrays")
    if not found:
        raise DataError(
            f"{where}: the model's batch is fixed at {inputs.fixed}, "
            f"no shape has so many of the {samples} samples",
            f"give at least {inputs.fixed} samples",
        )


def _as_mapping(feed: Any, inputs: Inputs, where: str) -> Mapping[str, Any]:
    if isinstance(feed, Mapping):
        return feed
    if len(inputs.specs) == 1 and hasattr(feed, "__array__"):
        return {inputs.specs[0].name: feed}
    raise DataError(
        f"{where} is a {type(feed).__name__}, wanted a dict of input name to array",
        f"the model's inputs are {inputs}",
    )


def _size(sample: Feed) -> int:
    return sum(a.nbytes for a in sample.values())
