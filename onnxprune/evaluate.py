"""Run models on samples: how far their outputs are from the dense model's, and the user's own measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.agreement import Agreement, AgreementParts
from onnxprune.answers import output_kinds
from onnxprune.divergence import divergence, total_divergence
from onnxprune.errors import DataError
from onnxprune.outputs import NONE, OutputKind
from onnxprune.userfunction import load_function, wrap
from onnxprune.verdict import Verdict, verdict

if TYPE_CHECKING:
    from onnxprune.model import Model

__all__ = [
    "Agreement",
    "OutputKind",
    "Verdict",
    "agreement",
    "divergence",
    "load_function",
    "output_kinds",
    "run",
    "task_metric",
    "total_divergence",
    "verdict",
]

Array = NDArray[Any]
Feeds = Mapping[str, Array]


def agreement(
    dense: Any, other: Any, batches: Iterable[Feeds], model: Model | None = None
) -> tuple[Agreement, ...]:
    """Run two sessions on the same inputs and compare each output.

    Args:
        dense: session of the model that is right by definition.
        other: session of the model to judge. Outputs are matched by name; when no name fits and both
            models have equally many, by position.
        batches: inputs, a dictionary per batch.
        model: the dense model; its graph tells classes from features, see :mod:`onnxprune.outputs`.

    Returns:
        One entry per output of ``dense`` that ``other`` has too, in the order of ``dense``; one for each part
        of outputs that hold values of different scales, such as boxes and scores.

    Raises:
        DataError: when there is no batch, or ONNX Runtime cannot run one.
    """
    from onnxprune.calibration.mask import row_mask

    pairs = _pairs(dense, other)
    readable = [(a, b) for a, b, problem in pairs if not problem]
    sums: dict[str, AgreementParts] = {}
    count = 0
    for batch in batches:
        count += 1
        if not readable:
            continue
        first = run(dense, batch, [a for a, _ in readable], "the reference model")
        second = run(other, batch, [b for _, b in readable], "the other model")
        mask = row_mask(batch)
        if not sums:
            values = {name: a for (name, _), a in zip(readable, first, strict=True)}
            kinds = output_kinds(values, model, mask=mask)
            sums = {name: AgreementParts(name, kind) for name, kind in kinds.items()}
        for (name, _), a, b in zip(readable, first, second, strict=True):
            if sums[name].kind.family != NONE:
                sums[name].add(a, b, mask)
    if not count:
        raise DataError("there is no sample to compare the models on", "give --data, or more --samples")
    return tuple(
        item
        for a, _, problem in pairs
        for item in (
            [Agreement(a, OutputKind(NONE, reason=problem), note=problem)] if problem else sums[a].results()
        )
    )


def _pairs(dense: Any, other: Any) -> list[tuple[str, str, str]]:
    """Match outputs: (name in dense, name in other, why it cannot be compared or "")."""
    first, second = dense.get_outputs(), other.get_outputs()
    names = {item.name for item in second}
    if len(first) == len(second) and not any(item.name in names for item in first):
        matched = [(a, b.name) for a, b in zip(first, second, strict=True)]
    else:
        matched = [(item, item.name) for item in first if item.name in names]
    return [(a.name, b, _unreadable(a.type)) for a, b in matched]


def _unreadable(kind: str) -> str:
    """Why ONNX Runtime's Python side cannot hand out a value of type ``kind`` as an array, or ""."""
    if not kind.startswith("tensor("):
        return f"{kind} is no tensor"
    if "bfloat16" in kind or "float8" in kind or "int4" in kind:
        return f"numpy has no type for {kind}"
    return ""


def run(
    session: Any, feeds: Feeds, outputs: Sequence[str] | None = None, name: str = "the model"
) -> list[Any]:
    """Run a session on the inputs that it knows.

    Raises:
        DataError: when an input is missing, or ONNX Runtime fails on these inputs.
    """
    wanted = [item.name for item in session.get_inputs()]
    missing = [item for item in wanted if item not in feeds]
    if missing:
        raise DataError(f"{name} wants input {missing[0]!r}, the data has {', '.join(map(repr, feeds))}")
    try:
        values: list[Any] = session.run(outputs, {item: feeds[item] for item in wanted})
    except Exception as error:  # ORT raises many classes, all private; each one means it cannot run this
        shapes = ", ".join(f"{item} {feeds[item].dtype}{list(feeds[item].shape)}" for item in wanted)
        raise DataError(f"ONNX Runtime cannot run {name} on {shapes}: {error}") from error
    return values


def task_metric(function: Callable[[Any], Any], session: Any, *, finite: bool = True) -> float:
    """Call the user's measure on a session and return its number.

    Args:
        function: gets the session (``run``, ``get_inputs``, ``get_outputs`` as in ONNX Runtime); see
            :func:`onnxprune.userfunction.load_function`.
        session: of the model to measure.
        finite: refuse NaN and infinity; else these are returned, as what a broken model may well give.

    Raises:
        DataError: when the function raises, or returns something else than one finite number.
    """
    guarded = wrap(function)
    value = guarded(session)
    try:
        item = value.item() if isinstance(value, np.ndarray | np.generic) else value
        if isinstance(item, bool | str | bytes):
            raise TypeError
        number = float(item)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number, finite = math.nan, True
    if finite and not math.isfinite(number):
        shown = " ".join(repr(value).split())
        raise DataError(
            f"{guarded.file}: {guarded.name} returned {shown if len(shown) <= 80 else shown[:77] + '...'}, "
            "wanted one finite number",
            "return the metric, such as an accuracy",
        )
    return number
