"""``.npz`` (keys = input names, first axis = samples), and one ``.npy`` for a model with one input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import labels
from onnxprune.calibration.batching import check_memory
from onnxprune.calibration.checks import cast, castable, check_feed, check_values, common_count, type_hint
from onnxprune.calibration.inputs import Array, Feed, Inputs, InputSpec
from onnxprune.calibration.npy import StoredArray, open_npy, open_npz
from onnxprune.calibration.sources import Loaded, Request
from onnxprune.errors import DataError

SUFFIXES = (".npz", ".npy")


def matches(reference: str) -> bool:
    """Whether ``reference`` is named like a numpy file and is no folder."""
    path = Path(reference).expanduser()
    return path.suffix.lower() in SUFFIXES and path.is_file()


def load(reference: str, request: Request) -> Loaded:
    """Read the chosen samples of a numpy file.

    Raises:
        DataError: when the file is broken or does not fit the model's inputs.
    """
    path = Path(reference).expanduser()
    return load_stacked(open_arrays(path), request, path.name)


def open_arrays(path: Path) -> dict[str, StoredArray]:
    """Return the arrays of one numpy file by key; a ``.npy`` has its file's stem as key."""
    return open_npz(path) if path.suffix.lower() == ".npz" else {path.stem: open_npy(path)}


def load_stacked(arrays: Mapping[str, StoredArray], request: Request, where: str) -> Loaded:
    """Read the chosen samples of arrays whose first axis is the samples."""
    names, notes = match_names(arrays, request.inputs, where)
    table = Table.plan({n: arrays[k] for n, k in names.items()}, request.inputs, where)
    chosen = request.choose(table.pieces)
    return Loaded(table.read(chosen), table.samples, notes)


def match_names(
    arrays: Mapping[str, StoredArray], inputs: Inputs, where: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return input name -> key, and notes on what was assumed or ignored.

    A key matches its input exactly, or after characters that file names cannot hold became ``_``.
    When the model has one input and no key matches, the one array whose type, rank and fixed
    dimensions all fit is taken and noted; labels and the like do not fit, and with two candidates we ask.
    Labels that were asked for are under :data:`~onnxprune.calibration.labels.LABELS`.

    Raises:
        DataError: listing the wanted inputs (or the labels) and the found arrays.
    """
    if inputs.labels is not None:
        labels.find(arrays, inputs.labels, where)
        rest = {key: array for key, array in arrays.items() if key != inputs.labels}
        matched, remarks = match_names(rest, replace(inputs, labels=None), where)
        return {**matched, labels.LABELS: inputs.labels}, remarks
    names: dict[str, str] = {}
    for spec in inputs.specs:
        safe = re.sub(r"[^\w.-]", "_", spec.name)
        key = next((k for k in (spec.name, safe) if k in arrays), None)
        if key is not None:
            names[spec.name] = key
    notes: tuple[str, ...] = ()
    if not names and len(inputs.specs) == 1:
        spec = inputs.specs[0]
        fitting = [k for k, a in arrays.items() if _fits(a, spec, inputs)]
        candidates = fitting or ([*arrays] if len(arrays) == 1 else [])
        if len(candidates) == 1:
            names = {spec.name: candidates[0]}
            if candidates[0] != where.rpartition(".")[0]:  # a lone .npy has no key to speak of
                notes = (f"array {candidates[0]!r} used for input {spec.name!r}",)
    found = ", ".join(f"{k}: {a.dtype.name}[{','.join(map(str, a.shape))}]" for k, a in arrays.items())
    missing = [s for s in inputs.specs if s.name not in names]
    if missing:
        hint = f"name the arrays like the model's inputs: {', '.join(s.name for s in inputs.specs)}"
        pixels = [a for a in arrays.values() if a.dtype == np.uint8 and len(a.shape) >= 3]
        if len(inputs.specs) == 1 and pixels and not castable(pixels[0].dtype, inputs.specs[0].dtype):
            hint += f"; {type_hint(pixels[0].dtype, inputs.specs[0].dtype)}"
        raise DataError(f"{where}: no array for input {', '.join(map(str, missing))}; found {found}", hint)
    ignored = [k for k in arrays if k not in names.values()]
    return names, (*notes, f"ignored {', '.join(ignored)}") if ignored else notes


def _fits(array: StoredArray, spec: InputSpec, inputs: Inputs) -> bool:
    if not spec.ranked or not castable(array.dtype, spec.dtype) or len(array.shape) != len(spec.shape):
        return False
    first = 1 if spec.name in inputs.batched else 0
    pairs = zip(array.shape[first:], spec.shape[first:], strict=True)
    return all(want == have for have, want in pairs if isinstance(want, int))


@dataclass(frozen=True)
class Table:
    """Stored arrays laid out as pieces: piece ``i`` is rows ``i * r`` to ``i * r + r`` of each input.

    Attributes:
        rows: arrays whose axis 0 runs over rows (batched inputs) or over pieces (whole feeds).
        shared: arrays that every piece gets as they are.
    """

    inputs: Inputs
    where: str
    rows: dict[str, StoredArray]
    shared: dict[str, StoredArray]
    pieces: int
    samples: int

    @classmethod
    def plan(
        cls, arrays: Mapping[str, StoredArray], inputs: Inputs, where: str, single: bool = False
    ) -> Table:
        """Check headers and find the sample axis.

        One more dimension than the model wants is a stack of feeds. ``single`` also allows one less:
        a single sample without batch axis.

        Raises:
            DataError: for a wrong type or shape, no samples, or counts that disagree.
        """
        rows: dict[str, StoredArray] = {}
        shared: dict[str, StoredArray] = {}
        alone, stack = False, tuple[int, ...]()
        for spec in inputs.specs:
            array = arrays[spec.name]
            more = len(array.shape) - len(spec.shape) if spec.ranked else 0
            batched = spec.name in inputs.batched
            if batched and single and more == -1:
                array, more, alone = array.reshaped(1, *array.shape), 0, True
            stacked = more == 1 and bool(array.shape)
            feed = array.shape[1:] if stacked else array.shape
            if batched and not feed:
                raise DataError(
                    f"{where}: input {spec.name!r} wants {spec.type}, found a single {array.dtype.name}"
                )
            # A stack of a fixed batch must hold exactly such batches, else rows would be torn apart.
            loose = batched and not (stacked and inputs.fixed)
            check_feed(feed, array.dtype, spec, loose, where)
            if batched:
                stack = array.shape[:2] if stacked else stack
                rows[spec.name] = array.reshaped(feed[0] * array.shape[0], *feed[1:]) if stacked else array
            elif stacked:
                rows[spec.name] = array
            else:
                shared[spec.name] = array
        if inputs.labels is not None and not rows:
            shared[labels.LABELS] = arrays[labels.LABELS]
        elif inputs.labels is not None:
            array = arrays[labels.LABELS]
            count = next((rows[n] for n in inputs.batched if n in rows), next(iter(rows.values()))).shape[0]
            place = f"{where}: labels {inputs.labels!r}"
            shape = labels.layout(array.shape, count, place, stack=stack, alone=alone)
            rows[labels.LABELS] = array.reshaped(*shape)
        return cls._counted(inputs, where, rows, shared)

    @classmethod
    def _counted(
        cls, inputs: Inputs, where: str, rows: dict[str, StoredArray], shared: dict[str, StoredArray]
    ) -> Table:
        if not rows:
            return cls(inputs, where, rows, shared, 1, 1)
        if not inputs.batched:
            count = common_count({n: a.shape[0] for n, a in rows.items()}, where)
            pieces, samples = count, count
        else:
            samples = common_count({n: rows[n].shape[0] for n in inputs.batched}, where)
            pieces = samples // inputs.rows
            per_piece = {n: a.shape[0] for n, a in rows.items() if n not in inputs.batched}
            common_count({"the samples": pieces, **per_piece}, where)
        if samples == 0:
            raise DataError(f"{where}: there are no samples in it (the first axis is 0)")
        if pieces == 0:
            raise DataError(
                f"{where}: holds {samples} samples, but the model's batch is fixed at {inputs.fixed}",
                f"give at least {inputs.fixed} samples",
            )
        return cls(inputs, where, rows, shared, pieces, samples)

    def read(self, chosen: NDArray[np.int64]) -> list[Feed]:
        """Return the chosen pieces, checked.

        Raises:
            DataError: when the file is damaged or holds values the model cannot take.
        """
        shared = {n: self._checked(n, a.read()) for n, a in self.shared.items()}
        step = self.inputs.rows
        loaded: dict[str, Array] = {}
        for name, stored in self.rows.items():
            batched = name in self.inputs.batched
            index = (chosen[:, None] * step + np.arange(step)).ravel() if batched else chosen
            loaded[name] = self._checked(name, stored.rows(index))
            check_memory(sum(a.nbytes for a in loaded.values()), self.where)
        if not self.rows:
            return [shared]
        names = [*(s.name for s in self.inputs.specs), *([labels.LABELS] if self.inputs.labels else [])]
        return [{name: self._piece(name, i, loaded, shared) for name in names} for i in range(len(chosen))]

    def _piece(self, name: str, number: int, loaded: dict[str, Array], shared: dict[str, Array]) -> Array:
        if name in shared:
            return shared[name]
        if name not in self.inputs.batched:
            return loaded[name][number, ...]  # an array even without axes: ONNX Runtime takes no scalars
        step = self.inputs.rows
        return loaded[name][number * step : (number + 1) * step]

    def _checked(self, name: str, array: Array) -> Array:
        if name == labels.LABELS:
            return labels.checked(array, f"{self.where}: labels {self.inputs.labels!r}")
        spec = self.inputs.named(name)
        array = cast(array, spec.dtype, f"{self.where}: input {name!r}")
        check_values(array, spec, self.where)
        return array
