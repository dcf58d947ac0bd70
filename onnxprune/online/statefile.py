"""Sums of a :class:`~onnxprune.online.pruner.Pruner` as arrays by name, and as an ``.npz`` file.

The names follow the fields of the data classes that hold the sums, so that a new field is kept as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.spread import Spread
from onnxprune.calibration.stats import Moments
from onnxprune.errors import DataError
from onnxprune.files.atomic import staged
from onnxprune.layers import Layer
from onnxprune.model import Model

Array = NDArray[Any]
T = TypeVar("T", Moments, NDArray[np.int64], Moments | NDArray[np.int64])


def put(prefix: str, sums: Moments | Array) -> dict[str, Array]:
    """Return the sums as arrays whose names begin with ``prefix``.

    Raises:
        ValueError: for sums of a pruned model, which a Pruner never has.
    """
    if not isinstance(sums, Moments):
        return {f"{prefix}counts": sums}
    state: dict[str, Array] = {}
    for name, value in _fields(sums).items():
        if isinstance(value, int | float | np.ndarray):
            state[prefix + name] = np.array(value)
        elif name == "spreads":
            for spread in value:  # one at most: a Pruner adds to the same sums
                state |= {f"{prefix}spread.{key}": np.array(array) for key, array in vars(spread).items()}
        elif value:
            raise ValueError(f"{name} of sums cannot be kept")
    return state


def take(state: Mapping[str, Array], prefix: str, empty: T) -> T:
    """Return what :func:`put` made arrays of.

    Args:
        state: arrays by name.
        prefix: as given to :func:`put`.
        empty: sums of the right shape without any data; changed.

    Raises:
        KeyError: when an array is missing.
        ValueError: when one has the wrong shape.
    """
    if not isinstance(empty, Moments):
        return _like(state[f"{prefix}counts"], empty)
    for name, value in _fields(empty).items():
        if isinstance(value, np.ndarray):
            setattr(empty, name, _like(state[prefix + name], value))
        elif isinstance(value, int | float):
            setattr(empty, name, type(value)(state[prefix + name]))
    start = f"{prefix}spread."
    parts = {key.removeprefix(start): array for key, array in state.items() if key.startswith(start)}
    if parts:
        groups, features = empty.sum_p.shape
        spread = Spread(np.zeros((groups, 1, features), dtype=np.float32))
        for name, value in vars(spread).items():
            held = _like(parts[name], np.asarray(value))
            setattr(spread, name, held if isinstance(value, np.ndarray) else int(held))
        empty.spreads = [spread]
    return empty


def _fields(sums: Moments) -> dict[str, Any]:
    found = {item.name: getattr(sums, item.name) for item in dataclasses.fields(sums)}
    return {name: value for name, value in found.items() if not name.startswith("_") and value is not None}


def _like(found: Array, wanted: Array) -> Array:
    if found.shape != wanted.shape:
        raise ValueError(f"an array has shape {list(found.shape)}, wanted {list(wanted.shape)}")
    return np.array(found, dtype=wanted.dtype)


def plain(array: Array) -> Array:
    """Return an array that a file can hold: text has a width there."""
    return array.astype(np.str_) if array.dtype.hasobject else array


def groups(state: Mapping[str, Array], prefix: str) -> Iterator[dict[str, Array]]:
    """Yield the dictionaries that were put as ``prefix`` + number + "." + name, by number."""
    found: dict[int, dict[str, Array]] = {}
    for key, array in state.items():
        if key.startswith(prefix):
            number, _, name = key.removeprefix(prefix).partition(".")
            text = array.dtype.kind == "U"
            found.setdefault(int(number), {})[name] = array.astype(object) if text else array
    yield from (group for _, group in sorted(found.items()))


def digest(model: Model, layers: Sequence[Layer]) -> str:
    """Return what tells models and choices of layers apart: nodes, weights and names."""
    state = hashlib.sha256(repr([layer.name for layer in layers]).encode())
    for node in model.graph.node:
        state.update(node.SerializeToString(deterministic=True))
    for name in sorted(model.index.tensors):
        state.update(name.encode())
        state.update(np.ascontiguousarray(model.array(name)).tobytes())
    return state.hexdigest()


def write(path: Path, state: Mapping[str, Array], *, force: bool = False) -> None:
    """Write arrays to an ``.npz`` file; it is complete or absent.

    Raises:
        UsageError: when it exists (without ``force``), or its folder does not.
        ResourceError: when it cannot be written.
    """
    with staged(path, force=force) as staging:
        with staging.create(path.name) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in state.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        staging.publish()


def read(path: Path) -> dict[str, Array]:
    """Return the arrays of an ``.npz`` file.

    Raises:
        DataError: when it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no state of a Pruner: {error}") from error
