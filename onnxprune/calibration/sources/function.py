"""``FILE.py:function`` or ``package.module:function``: the user's own code yields the feeds.

The function is called without arguments, or with ``samples=`` and ``seed=`` where it names them. It
returns an iterable of dicts (a batch or a single sample each; arrays for a model with one input), one
such dict, or an object with ``get_next()`` as ONNX Runtime's calibration data readers have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxprune.calibration.sources import Loaded, Request
from onnxprune.calibration.sources.stream import collect
from onnxprune.errors import DataError, UsageError
from onnxprune.userfunction import UserFunction, is_reference, load_function


def matches(reference: str) -> bool:
    """Whether ``reference`` names a function."""
    if Path(reference).suffix == ".py" and Path(reference).is_file():
        raise UsageError(
            f"--data is {reference}, wanted {reference}:function", "name the function that yields dicts"
        )
    return is_reference(reference)


def load(reference: str, request: Request) -> Loaded:
    """Import and call the function, and choose among what it yields.

    Raises:
        DataError: when it raises or yields something else than feeds.
        UsageError: when it is missing.
    """
    function = load_function(reference, "--data")
    where = f"{Path(function.file).name}:{function.name}"
    result = function(samples=request.recipe.samples, seed=request.recipe.seed)
    return collect(_feeds(function, result, where), request, where)


def _feeds(function: UserFunction, result: Any, where: str) -> Iterable[Any]:
    if result is None:
        raise DataError(f"{where} returned nothing", "it must yield dicts of input name to array")
    if isinstance(result, Mapping) or hasattr(result, "__array__"):
        return [result]
    if callable(getattr(result, "get_next", None)):
        return function.iterate(iter(result.get_next, None))
    if isinstance(result, str | bytes) or not isinstance(result, Iterable):
        raise DataError(
            f"{where} returned a {type(result).__name__}, wanted an iterable of dicts",
            "yield dicts of input name to array",
        )
    return _Sequence(function, result) if hasattr(result, "__len__") else function.iterate(result)


class _Sequence:
    """A list or data set of the user: sized, so it is read to the end, and read under guard."""

    def __init__(self, function: UserFunction, values: Any) -> None:
        self._function, self._values = function, values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return self._function.iterate(self._values)
