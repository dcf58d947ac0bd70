"""The checks that data must pass before it is fed: names, types, shapes, values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.calibration import labels
from onnxprune.calibration.inputs import Array, Feed, Inputs, InputSpec, is_float
from onnxprune.errors import DataError


def cast(array: Array, wanted: np.dtype[Any], where: str) -> Array:
    """Return ``array`` as ``wanted``, if that keeps its meaning.

    Allowed: integers to integers that hold every value; floats to floats (rounding, but no
    overflow); bool to anything; integers that are all 0 or 1 to bool; text to string tensors.
    Integers never turn into floats: uint8 pixels fed as they are would calibrate on the wrong scale.

    Raises:
        DataError: naming ``where`` for anything else.
    """
    found = array.dtype
    if found == wanted:
        return array
    if (
        found.kind == "V"
        and found.names is None
        and found.itemsize == wanted.itemsize
        and wanted.name == "bfloat16"
    ):
        return array.view(wanted)  # numpy saves bfloat16 as raw two-byte items
    if wanted.kind == "O" and found.kind == "U":
        return array.astype(object)
    if wanted.kind in "biu" and found.kind in "biu":
        return _cast_integer(array, wanted, where)
    if found.kind == "b" and is_float(wanted):
        return array.astype(wanted)
    if is_float(found) and is_float(wanted):
        with np.errstate(over="ignore"):
            result: Array = array.astype(wanted)
        if bool((np.isfinite(array) & ~np.isfinite(result)).any()):
            largest = float(np.abs(array[np.isfinite(array)].astype(np.float64)).max())
            raise DataError(f"{where} holds {largest:g}, too large for {wanted.name}")
        return result
    name = "string" if wanted.kind == "O" else wanted.name
    raise DataError(f"{where} is {found.name}, the model wants {name}", type_hint(found, wanted))


def type_hint(found: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    """Return what to do about a type that cannot be cast."""
    if found == np.uint8 and is_float(wanted):
        return f"normalise pixels as for inference, such as ((x / 255 - mean) / std).astype('{wanted.name}')"
    return f"convert it to {'str' if wanted.kind == 'O' else wanted.name} first"


def _cast_integer(array: Array, wanted: np.dtype[Any], where: str) -> Array:
    low, high = (0, 1) if wanted.kind == "b" else (int(np.iinfo(wanted).min), int(np.iinfo(wanted).max))
    if array.size and array.dtype.kind != "b" and (int(array.min()) < low or int(array.max()) > high):
        raise DataError(
            f"{where} holds {array.min()} to {array.max()} as {array.dtype.name}, "
            f"which does not fit the model's {wanted.name}"
        )
    return array.astype(wanted)


def castable(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether :func:`cast` may accept such data; the values decide the rest."""
    try:
        cast(np.empty(0, found), wanted, "")
    except DataError:
        return False
    return True


def check_feed(
    shape: tuple[int, ...], dtype: np.dtype[Any], spec: InputSpec, batched: bool, where: str
) -> None:
    """Check type, rank and fixed dimensions of one feed; the batch axis is not compared.

    Raises:
        DataError: naming input, expected and found shape and dtype.
    """
    message = (
        f"{where}: input {spec.name!r} wants {spec.type}, found {dtype.name}[{','.join(map(str, shape))}]"
    )
    if not castable(dtype, spec.dtype):
        raise DataError(message, type_hint(dtype, spec.dtype))
    if not spec.ranked:
        return
    if len(shape) != len(spec.shape):
        raise DataError(message, f"it has {len(shape)} dimensions, wanted {len(spec.shape)}")
    for axis, (have, want) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(want, int) and have != want and not (batched and axis == 0):
            raise DataError(f"{message} (axis {axis} is {have}, wanted {want})")


def check_values(array: Array, spec: InputSpec, where: str) -> None:
    """Refuse NaN and infinity; -inf passes in inputs named ``*mask*``, where it means "not this one".

    Raises:
        DataError: naming the input and where the first bad value sits.
    """
    if not is_float(array.dtype):
        return
    bad = ~np.isfinite(array)
    if "mask" in spec.name.lower():
        bad &= array != -np.inf
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"{where}: input {spec.name!r} holds {array[first]} at {list(first)} "
            f"({int(bad.sum())} values are not finite)",
            "remove or repair these samples",
        )


def split_feed(feed: Mapping[str, Any], inputs: Inputs, where: str) -> list[Feed]:
    """Check one feed and cut it into its smallest pieces (one row each, where the batch is free).

    A feed whose batched inputs all have one dimension less than the model wants is a single sample
    and gets its batch axis here. Keys that are no inputs (nor the labels) are ignored.

    Raises:
        DataError: for missing inputs or labels, wrong types, shapes or values, and unequal sample counts.
    """
    missing = [s for s in inputs.specs if s.name not in feed]
    if missing:
        raise DataError(
            f"{where}: no data for input {', '.join(map(str, missing))}; "
            f"found {', '.join(map(str, feed)) or 'nothing'}",
            f"the model's inputs are {inputs}",
        )
    arrays = {s.name: as_array(feed[s.name], f"{where}: input {s.name!r}") for s in inputs.specs}
    batched = [s for s in inputs.specs if s.name in inputs.batched]
    alone = bool(batched) and all(s.ranked and arrays[s.name].ndim == len(s.shape) - 1 for s in batched)
    if alone:
        arrays = {n: a[None] if n in inputs.batched else a for n, a in arrays.items()}
    for spec in inputs.specs:
        array = arrays[spec.name]
        if array.ndim == 0 and spec.name in inputs.batched:
            raise DataError(
                f"{where}: input {spec.name!r} wants {spec.type}, found a single {array.dtype.name}"
            )
        check_feed(array.shape, array.dtype, spec, spec.name in inputs.batched, where)
        arrays[spec.name] = cast(array, spec.dtype, f"{where}: input {spec.name!r}")
        check_values(arrays[spec.name], spec, where)
    if inputs.labels is not None:
        place = f"{where}: labels {inputs.labels!r}"
        found = labels.checked(as_array(labels.find(feed, inputs.labels, where), place), place)
        if batched:
            rows = common_count({s.name: arrays[s.name].shape[0] for s in batched}, where)
            found = found.reshape(labels.layout(found.shape, rows, place, alone=alone))
        arrays[labels.LABELS] = found
    return split_rows(arrays, inputs, where)


def as_array(value: Any, where: str) -> Array:
    """Return ``value`` (array, nested list, CPU tensor) as an array that holds plain values.

    Raises:
        DataError: for ragged lists and Python objects.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where} cannot be turned into an array: {error}") from error
    if array.dtype.kind == "O" and array.size and all(isinstance(x, str) for x in array.flat):
        return array.astype(str)
    if array.dtype.hasobject:
        raise DataError(f"{where} holds Python objects, wanted an array of numbers or text")
    return array


def split_rows(arrays: Feed, inputs: Inputs, where: str) -> list[Feed]:
    """Cut checked arrays along the batch axis into pieces of ``inputs.rows`` rows.

    A piece shorter than that is returned only when every piece has one row (see ``batching``).

    Raises:
        DataError: when the inputs disagree on the number of samples.
    """
    if not inputs.batched:
        return [arrays]
    count = common_count({n: arrays[n].shape[0] for n in inputs.batched}, where)
    rows = inputs.rows if count % inputs.rows == 0 else 1
    return [
        {n: a[i : i + rows] if n in inputs.batched else a for n, a in arrays.items()}
        for i in range(0, count, rows)
    ]


def common_count(counts: Mapping[str, int], where: str) -> int:
    """Return the one sample count that all inputs share.

    Raises:
        DataError: when they differ.
    """
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{where}: the inputs disagree on the number of samples: "
            + ", ".join(f"{name} has {count}" for name, count in sorted(counts.items()))
        )
    return next(iter(counts.values()))
