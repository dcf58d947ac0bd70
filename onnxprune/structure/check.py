"""Is a smaller model right? It must be valid, run, and equal the dense model with the same units masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import ModelError
from onnxprune.inmemory import session_of
from onnxprune.interface import interface_differences
from onnxprune.model import Model
from onnxprune.passes.shapes import skeleton
from onnxprune.rounding import NOISE, matrices, relative, shaken
from onnxprune.structure.groups import Structure
from onnxprune.structure.masking import Removed, mask_units
from onnxprune.structure.removal import remove_units
from onnxprune.structure.trials import of_other_magnitude, resized

# Of an output's largest value; where the model amplifies rounding, what it makes of weights that are shaken:
# a sigmoid that says 1e-6 everywhere has few digits that count. What is told wrong moves it by its own size.
TOLERANCE, LARGEST_TOLERANCE = 1e-5, 0.1


def check_removal(
    masked: Model, smaller: Model, feeds: Mapping[str, Any], threads: int | None = None
) -> str | None:
    """Return why ``smaller`` is not the model without the units that are masked in ``masked``, None if it is.

    Both run without graph optimisations, so that the order of sums is alike.

    Args:
        masked: of :func:`mask_units`.
        smaller: of :func:`remove_units`.
        feeds: one batch of inputs. Where the model takes other sizes, it is compared on some as well.
        threads: of ONNX Runtime.
    """
    differences = interface_differences(masked, smaller)
    if differences:
        return f"another interface: {differences[0]}"
    refused = _invalid(smaller)
    if refused and not _invalid(masked):  # ONNX Runtime runs models that the checker refuses
        return refused
    pair = _Pair(masked, smaller, threads)
    reason, alive = pair.compare(feeds)
    if reason:
        return reason
    for other in resized(masked, feeds):  # a constant may be right for the sizes of one batch only
        try:
            reason, lives = pair.compare(other)
        except ModelError:
            continue
        if reason:
            return f"with inputs of other sizes: {reason}"
        alive = alive or lives
        break
    for other in () if alive else of_other_magnitude(feeds):
        reason, alive = pair.compare(other)
        if reason or alive:
            return reason or None
    return None if alive else "all its outputs are zero or not finite: there is nothing to compare"


class _Pair:
    """The masked model and the smaller one, each in a session."""

    def __init__(self, masked: Model, smaller: Model, threads: int | None) -> None:
        self.names = list(masked.index.outputs)
        self.model, self.threads = masked, threads
        self.masked = session_of(masked, threads=threads, optimize=False)
        self.shaken: Any = None
        self.smaller: Any = None
        self.refused = ""
        try:
            self.smaller = session_of(smaller, threads=threads, optimize=False)
        except ModelError as error:
            self.refused = f"does not run: {error}"

    def compare(self, feeds: Mapping[str, Any]) -> tuple[str, bool]:
        """Return in what the outputs differ, and whether they say anything: zeros and NaN are always alike.

        Raises:
            ModelError: when the masked model does not run on ``feeds``.
        """
        if self.refused:
            return self.refused, True
        wanted = _run(self.masked, feeds)
        try:
            found = _run(self.smaller, feeds)
        except ModelError as error:
            return f"does not run: {error}", True
        rooms = [TOLERANCE] * len(wanted)
        if any(_difference(a, b, TOLERANCE) for a, b in zip(wanted, found, strict=True)):
            rooms = self._rooms(feeds, wanted)
        for name, a, b, room in zip(self.names, wanted, found, rooms, strict=True):
            reason = _difference(a, b, room)
            if reason:
                return f"output {name!r} differs from the masked model: {reason}", True
        floats = [value for value in wanted if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
        return "", not floats or any((np.isfinite(value) & (value != 0)).any() for value in floats)

    def _rooms(self, feeds: Mapping[str, Any], wanted: list[Any]) -> list[float]:
        """Return how far rounding may move each output."""
        if self.shaken is None:
            trembling = shaken(self.model, matrices(self.model))
            self.shaken = session_of(trembling, threads=self.threads, optimize=False)
        found = _run(self.shaken, feeds)
        noises = [_error(a, b) for a, b in zip(wanted, found, strict=True)]
        # Where shaking takes a number away, it says nothing of how far the others may move
        return [min(max(TOLERANCE, NOISE * n if n < np.inf else 0.0), LARGEST_TOLERANCE) for n in noises]


def _invalid(model: Model) -> str:
    try:
        light = skeleton(model)  # of any size, and without moving the weights about
        onnx.checker.check_model(light)
        onnx.shape_inference.infer_shapes(light, strict_mode=True)
    except Exception as error:  # protobuf and ONNX raise several kinds
        return f"not valid: {' '.join(str(error).split())}"
    return ""


def _run(session: Any, feeds: Mapping[str, Any]) -> list[Any]:
    given = {item.name: feeds[item.name] for item in session.get_inputs() if item.name in feeds}
    try:
        result: list[Any] = session.run(None, given)
    except Exception as error:  # ORT raises many classes, all private
        raise ModelError(str(error)) from error
    return result


def _difference(wanted: Any, found: Any, room: float) -> str:
    if not isinstance(wanted, np.ndarray) or wanted.dtype.kind not in "fiub":
        return ""
    if wanted.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(wanted.shape)}"
    if wanted.dtype.kind != "f":
        return "" if np.array_equal(wanted, found) else "other numbers"
    error = _error(wanted, found)
    if error == np.inf:
        return "infinite or NaN in one of them"
    room = room if wanted.dtype.itemsize >= 4 else 2e-2
    return "" if error <= room else f"by {error:.2g} of its largest value, wanted at most {room:.2g}"


def _error(wanted: Any, found: Any) -> float:
    """Return the relative difference of floating point outputs, 0 of others."""
    if not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f":
        return 0.0
    return relative(found.astype(np.float64), wanted.astype(np.float64))


def remove_checked(
    model: Model, structure: Structure, removed: Removed, feeds: Mapping[str, Any], threads: int | None = None
) -> tuple[Model, Removed, dict[str, str]]:
    """Remove units from the groups where that is right, and leave the others alone.

    Groups that fail are found by bisection: halves of the groups are tried, and what fails alone is left.

    Returns:
        The smaller model, what was removed in it, and group name -> why its units are still there.

    Raises:
        UsageError: when a name is unknown, a mask does not fit, or no unit would be left.
    """
    failed: dict[str, str] = {}

    def good(names: list[str]) -> tuple[Model | None, str]:
        chosen = {name: removed[name] for name in names}
        try:
            smaller = remove_units(model, structure, chosen)
        except ModelError as error:
            return None, str(error)
        reason = check_removal(mask_units(model, structure, chosen), smaller, feeds, threads)
        return (smaller, "") if reason is None else (None, reason)

    def sound(names: list[str], before: list[str]) -> list[str]:
        """Return those of ``names`` that can be removed together with ``before``."""
        if not names:
            return []
        done, reason = good([*before, *names])
        if done is not None:
            return names
        if len(names) == 1:
            failed[names[0]] = reason
            return []
        half = len(names) // 2
        first = sound(names[:half], before)
        return [*first, *sound(names[half:], [*before, *first])]

    names = [name for name, mask in removed.items() if mask.any()]
    kept = sound(names, [])
    result, _ = good(kept)
    assert result is not None or not kept
    return result or model.copy(), {name: removed[name] for name in kept}, failed
