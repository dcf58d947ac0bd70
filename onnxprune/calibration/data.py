"""Calibration data: whatever ``--data`` names, as rectangular batches that fit the model's inputs.

Rules that hold for every kind of source:

- At most ``recipe.samples`` samples are used: a seeded choice spread over the whole source.
- Only casts that keep the meaning are made (see :func:`~onnxprune.calibration.inputs.cast`).
- A batch that the model fixes is filled exactly; samples left over are dropped, never padded.
- Text is padded by length, with mask 0; other samples share a batch only when their shapes are equal.
- NaN and infinity are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import labels, sources
from onnxprune.calibration.batching import assemble, batch_rows, row_count, rows_of
from onnxprune.calibration.hints import id_range
from onnxprune.calibration.inputs import Array, Feed, Inputs, InputSpec, input_specs, model_inputs
from onnxprune.calibration.sources import Loaded, Request, stream, synthetic, testdata
from onnxprune.errors import DataError
from onnxprune.model import Model
from onnxprune.recipe import Recipe

__all__ = ["CalibrationData", "InputSpec", "from_iterable", "input_specs", "load_data"]


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Checked inputs, ready to feed.

    Attributes:
        batches: feeds with every input of the model; axis 0 of the ``batched`` inputs is the batch.
        samples: rows in all batches (feeds, when the model has no common batch axis).
        synthetic: True when no data was given.
        source: one line for the report.
        batched: inputs with a batch axis; None means all.
        fixed: rows of every batch when the model fixes them, else None.
        as_given: the batches before padding was left out of them; empty when nothing was.
        labels: one array per batch, int64 (class numbers) or float32, axis 0 as that of the batch; empty when
            none were asked for.
    """

    batches: tuple[Feed, ...]
    samples: int
    synthetic: bool
    source: str
    batched: frozenset[str] | None = None
    fixed: int | None = None
    as_given: tuple[Feed, ...] = ()
    labels: tuple[Array, ...] = ()

    def feeds(self) -> Iterator[Feed]:
        """Yield the batches."""
        return iter(self.batches)

    def split(self, held_out: float, seed: int) -> tuple[CalibrationData, CalibrationData]:
        """Return (the rest, the held-out share), drawn at random by sample.

        Both get at least one sample (one batch where the model fixes it). With only one, the first
        part is everything and the second is empty: it has no batches.

        Args:
            held_out: share of the samples, 0 to 1.
            seed: same seed, same split.
        """
        pieces = self._pieces()
        count = len(pieces)
        held = min(max(round(count * held_out), 1), count - 1) if count > 1 and held_out > 0 else 0
        order = np.random.default_rng(seed).permutation(count)
        return self._pick(np.sort(order[held:]), pieces), self._pick(np.sort(order[:held]), pieces)

    def head(self, n: int) -> CalibrationData:
        """Return ``n`` samples (at least one piece) spread evenly over all, so long and short ones alike."""
        pieces = self._pieces()
        wanted = max(1, n // (self.fixed or 1))
        if wanted >= len(pieces):
            return self
        return self._pick(np.arange(wanted) * len(pieces) // wanted, pieces)

    def digest(self) -> str:
        """Return the SHA-256 of the content: equal for equal batches (and labels), whatever their source."""
        state = hashlib.sha256()
        for batch in labels.put(self.batches, self.labels):
            for name in sorted(batch):
                array = batch[name]
                data = (
                    repr(array.tolist()).encode()
                    if array.dtype.hasobject
                    else np.ascontiguousarray(array).tobytes()
                )
                state.update(f"{name}\0{array.dtype.name}\0{array.shape}\0{len(data)}\0".encode())
                state.update(data)
        return state.hexdigest()

    def _inputs(self) -> Inputs:
        batched = (
            self.batched if self.batched is not None else frozenset(n for b in self.batches[:1] for n in b)
        )
        return labels.labelled(Inputs((), batched, self.fixed), "labels" if self.labels else None)

    def _pieces(self) -> list[tuple[int, int]]:
        """(batch, row) of each sample, or (batch, 0) of each batch that must stay whole."""
        inputs = self._inputs()
        whole = inputs.fixed is not None or not inputs.batched
        rows = (1 if whole else row_count(b, inputs) for b in labels.put(self.batches, self.labels))
        return [(i, row) for i, count in enumerate(rows) for row in range(count)]

    def _pick(self, indices: NDArray[np.int64], pieces: list[tuple[int, int]]) -> CalibrationData:
        """Return the data of these pieces, batched anew: equal shapes together, not larger than before."""
        inputs = self._inputs()
        held = labels.put(self.batches, self.labels)
        chosen = [pieces[i] for i in indices]
        if inputs.fixed is not None or not inputs.batched:
            batches = tuple(held[i] for i, _ in chosen)
        else:
            limit = max(row_count(b, inputs) for b in held) if chosen else 1
            samples = [
                {n: a[row : row + 1] if n in inputs.batched else a for n, a in held[i].items()}
                for i, row in chosen
            ]
            batches = assemble(samples, inputs, limit, {}, self.source) if samples else ()
        count = rows_of(batches, inputs)
        batches, own = labels.take(batches)
        return replace(self, batches=batches, samples=count, labels=own)


def load_data(model: Model, recipe: Recipe) -> CalibrationData:
    """Read ``recipe.data``, or make up seeded inputs when it is None.

    Raises:
        DataError: when the data is missing, broken or does not fit the model's inputs.
        ModelError: when the model has no inputs, or some that are no tensors.
        ResourceError: when an optional package is missing, or the chosen samples are too large.
        UsageError: for options that do not go with the data.
    """
    request = Request(model, labels.labelled(model_inputs(model), recipe.labels), recipe)
    if recipe.data is None:
        sources.check_options(recipe, None)
        loaded = synthetic.load(request)
        return _finish(loaded, request, _synthetic_name(model), synthetic_data=True)
    try:
        kind, source = sources.find(recipe)
        loaded = source.load(recipe.data, request)
    except OSError as error:  # no permission, a loop of links, a disk that fails
        raise DataError(f"--data {recipe.data} cannot be read: {error.strerror or error}") from error
    name = recipe.data if kind.module == "function" else Path(recipe.data).expanduser().absolute().name
    return _finish(loaded, request, name)


def from_iterable(
    model: Model, feeds: Iterable[Mapping[str, Any]] | Mapping[str, Any] | Array, recipe: Recipe
) -> CalibrationData:
    """Check feeds given in Python: dicts (a batch or a single sample each), or arrays if there is one input.

    Raises:
        DataError: when they do not fit the model's inputs.
        ModelError: as :func:`load_data`.
    """
    inputs = labels.labelled(model_inputs(model), recipe.labels)
    if isinstance(feeds, Mapping):
        feeds = [feeds]
    elif isinstance(feeds, np.ndarray):
        if len(inputs.specs) != 1:
            raise DataError(f"data: one array was given, the model has {len(inputs.specs)} inputs: {inputs}")
        feeds = [{inputs.specs[0].name: feeds}]
    elif not isinstance(feeds, Iterable):
        raise DataError(
            f"data: {type(feeds).__name__} was given, wanted dicts of input name to array, or a path",
            f"the model's inputs are {inputs}",
        )
    request = Request(model, inputs, recipe)
    return _finish(stream.collect(feeds, request, "data"), request, "data from Python")


def _finish(loaded: Loaded, request: Request, name: str, synthetic_data: bool = False) -> CalibrationData:
    inputs, recipe = request.inputs, request.recipe
    limit = batch_rows(loaded.samples, inputs, recipe.batch_size)
    if loaded.limit is not None and inputs.fixed is None:
        limit = min(limit, loaded.limit)
    batches = assemble(loaded.samples, inputs, limit, loaded.padding, name)
    for spec in inputs.specs:
        _check_ids(request.model, spec, batches, name)
    count = rows_of(batches, inputs)
    of = f" of {loaded.total}" if loaded.total not in (None, count) else ""
    source = "; ".join((f"{name}, {count}{of} {loaded.unit}", *loaded.notes))
    batches, own = labels.take(batches)
    labels.check_alike(own, name)
    batched = inputs.batched - {labels.LABELS}
    return CalibrationData(batches, count, synthetic_data, source, batched, inputs.fixed, labels=own)


def _check_ids(model: Model, spec: InputSpec, batches: tuple[Feed, ...], where: str) -> None:
    """Say which table is too small, before ONNX Runtime says that some index is out of bounds."""
    known = id_range(model, spec.name) if spec.dtype.kind in "iu" else None
    if known is None or not known.exact:
        return
    largest = max((int(b[spec.name].max()) for b in batches if b[spec.name].size), default=0)
    if largest > known.high:
        raise DataError(
            f"{where}: input {spec.name!r} holds {largest}, "
            f"but table {known.table!r} of the model ends at {known.high}",
            "is it the tokenizer, or the vocabulary, of this model?",
        )


def _synthetic_name(model: Model) -> str:
    beside = testdata.data_sets(model.path.parent) if model.path is not None else []
    unused = (
        f" ({beside[0].name} beside the model was not used: --data {model.path.parent})"
        if beside and model.path
        else ""
    )
    return f"synthetic inputs, no --data given{unused}"
