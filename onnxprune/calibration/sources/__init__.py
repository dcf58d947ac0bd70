"""Kinds of calibration data: one module each, and one line in :data:`KINDS`.

A kind has ``matches(reference) -> bool``, which looks at names only, and ``load(reference, request)
-> Loaded``, which reads no more than the samples it chooses.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.batching import choose
from onnxprune.calibration.inputs import Feed, Inputs
from onnxprune.errors import DataError, UsageError
from onnxprune.model import Model
from onnxprune.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """What a source is asked for."""

    model: Model
    inputs: Inputs
    recipe: Recipe

    @property
    def pieces(self) -> int:
        """Most pieces of ``inputs.rows`` rows to load."""
        return max(1, self.recipe.samples // self.inputs.rows)

    def choose(self, total: int) -> NDArray[np.int64]:
        """Return which of ``total`` pieces to load: seeded, spread over all, ascending."""
        return choose(total, self.pieces, self.recipe.seed)


@dataclass(frozen=True)
class Loaded:
    """What a source gives back.

    Attributes:
        samples: checked pieces as :func:`~onnxprune.calibration.inputs.split_rows` makes them.
        total: samples (rows) the source holds, also those that were not chosen; None when unknown.
        notes: remarks for the report.
        padding: inputs that may be padded at the end of axis 1, and the value.
        limit: most rows that the model can take at once, when the source found that out.
        unit: what ``total`` counts.
    """

    samples: list[Feed]
    total: int | None
    notes: tuple[str, ...] = ()
    padding: Mapping[str, float] = field(default_factory=dict)
    limit: int | None = None
    unit: str = "samples"


class Source(Protocol):
    """The two functions of a source module."""

    def matches(self, reference: str) -> bool:
        """Whether ``reference`` looks like this kind."""

    def load(self, reference: str, request: Request) -> Loaded:
        """Read the chosen samples."""


class Kind(NamedTuple):
    """One line of the table: the module's name, its own options, and how the help describes it."""

    module: str
    options: tuple[str, ...]
    text: str


# First match wins, so the narrow forms come first.
KINDS = (
    Kind("function", ("labels",), "FILE.py:function"),
    Kind("npz", ("labels",), ".npz or .npy"),
    Kind("text", ("tokenizer",), ".txt or .jsonl with --tokenizer"),
    Kind("testdata", (), "test_data_set_* folders"),
    Kind("folder", ("labels",), "a folder of .npz or .npy"),
    Kind("images", ("mean", "std", "resize", "layout"), "an image folder"),
)
_DEFAULTS = Recipe()


def find(recipe: Recipe) -> tuple[Kind, Source]:
    """Return the kind and the module that read ``recipe.data``.

    Raises:
        DataError: when the path is missing or of no known kind.
        UsageError: when an option of another kind was given.
    """
    reference = recipe.data
    assert reference is not None
    for kind in KINDS:
        module = cast(Source, importlib.import_module(f"{__name__}.{kind.module}"))
        if module.matches(reference):
            check_options(recipe, kind)
            return kind, module
    known = "; ".join(k.text for k in KINDS)
    path = Path(reference).expanduser()
    if not path.exists():
        raise DataError(f"--data: no such file or folder: {reference}", f"known kinds: {known}")
    if path.is_dir():
        found = sorted({p.suffix.lower() or p.name for p in path.iterdir()})[:8]
        raise DataError(
            f"--data: folder {reference} holds no calibration data ({', '.join(found) or 'it is empty'})",
            f"known kinds: {known}",
        )
    raise DataError(f"--data: {reference} is of no known kind", f"known kinds: {known}")


def check_options(recipe: Recipe, used: Kind | None) -> None:
    """Refuse options that the data would silently ignore, such as --mean with an npz.

    Raises:
        UsageError: naming the option and the data it is meant for.
    """
    for option in dict.fromkeys(option for kind in KINDS for option in kind.options):
        if used and option in used.options:
            continue
        if getattr(recipe, option) != getattr(_DEFAULTS, option):
            meant = ", ".join(kind.text for kind in KINDS if option in kind.options)
            given = f"--data is {used.text}" if used else "there is no --data"
            raise UsageError(f"--{option} is for {meant}, but {given}", f"leave --{option} out")
