"""A folder of ``.npz`` or ``.npy``: one per sample or batch, or one stacked ``INPUT_NAME.npy`` per input."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.batching import check_memory, choose
from onnxprune.calibration.inputs import Feed, Inputs
from onnxprune.calibration.npy import StoredArray, open_npy
from onnxprune.calibration.sources import Loaded, Request
from onnxprune.calibration.sources.images import SUFFIXES as IMAGES
from onnxprune.calibration.sources.npz import SUFFIXES, Table, load_stacked, match_names, open_arrays
from onnxprune.errors import DataError


def matches(reference: str) -> bool:
    """Whether ``reference`` is a folder with numpy files directly in it."""
    path = Path(reference).expanduser()
    return path.is_dir() and any(p.suffix.lower() in SUFFIXES for p in path.iterdir())


def load(reference: str, request: Request) -> Loaded:
    """Read the chosen samples of the folder.

    Where there are more files than samples wanted, the files are chosen first (seeded, spread over
    all in the order of their names, numbers by value), and only those are opened.

    Raises:
        DataError: when the folder is ambiguous, or a file is broken or does not fit the model's inputs.
    """
    folder = Path(reference).expanduser()
    entries = sorted((p for p in folder.iterdir() if p.is_file() and p.name[0] != "."), key=natural)
    files = [p for p in entries if p.suffix.lower() in SUFFIXES]
    kinds = {p.suffix.lower() for p in entries if p.suffix.lower() in (*SUFFIXES, *IMAGES)}
    if len(kinds) > 1:
        raise DataError(
            f"{folder.name}: holds {', '.join(sorted(kinds))} files side by side; which are the samples?",
            "keep one kind in the folder given to --data",
        )
    if kinds == {".npy"} and (stems := _inputs_by_stem(files, request.inputs)) is not None:
        return load_stacked({name: open_npy(path) for name, path in stems.items()}, request, folder.name)
    return _load_each(files, request, folder.name)


def natural(path: Path) -> list[str | int]:
    """Sort key that counts: ``input_2`` comes before ``input_10``."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", path.name)]


def _inputs_by_stem(files: Sequence[Path], inputs: Inputs) -> dict[str, Path] | None:
    """Return name -> file when each ``.npy`` may be a whole input, and files for all inputs are there."""
    stems = {p.stem: p for p in files}
    found = [n for s in inputs.specs for n in (s.name, re.sub(r"[^\w.-]", "_", s.name)) if n in stems]
    return stems if len(set(found)) >= len(inputs.specs) or (found and len(inputs.specs) > 1) else None


def _load_each(files: Sequence[Path], request: Request, where: str) -> Loaded:
    inputs = request.inputs
    picked = [files[i] for i in request.choose(len(files))] if inputs.rows == 1 else list(files)
    arrays: list[tuple[str, dict[str, StoredArray]]] = []
    notes: dict[str, None] = {}
    for path in picked:
        found = open_arrays(path)
        names, remarks = match_names(found, inputs, path.name)
        if path.suffix.lower() != ".npy":  # the stem of a .npy says nothing worth a note
            notes.update(dict.fromkeys(remarks))
        arrays.append((path.name, {n: found[k] for n, k in names.items()}))
    loose = replace(inputs, fixed=None)
    tables = [Table.plan(a, loose, name, single=True) for name, a in arrays]
    wanted = request.recipe.samples
    if inputs.fixed is not None:
        wanted = request.pieces * inputs.fixed
        if all(t.samples % inputs.fixed == 0 for t in tables):  # files hold whole batches: keep them whole
            tables = [Table.plan(a, inputs, name, single=True) for name, a in arrays]
            wanted = request.pieces
    samples: list[Feed] = []
    starts = np.cumsum([0, *(t.pieces for t in tables)])
    chosen = choose(int(starts[-1]), wanted, request.recipe.seed)
    for number, table in enumerate(tables):
        inside: NDArray[np.int64] = chosen[(chosen >= starts[number]) & (chosen < starts[number + 1])]
        if inside.size:
            samples.extend(table.read(inside - starts[number]))
            check_memory(sum(a.nbytes for s in samples for a in s.values()), where)
    if len(picked) < len(files):
        return Loaded(samples, len(files), tuple(notes), unit="files")
    return Loaded(samples, sum(t.samples for t in tables), tuple(notes))
