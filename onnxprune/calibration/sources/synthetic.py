"""Seeded inputs made up from the graph alone, for when there is no data. They say little about accuracy.

Token ids stay below the vocabulary, masks are ones, token types zeros, positions count up, floats are
standard normal, past keys and values are empty. Free dimensions get a size by their name and place; where
that is a guess, sizes are tried until ONNX Runtime runs the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from onnxprune.calibration.checks import split_rows
from onnxprune.calibration.hints import channels, features, id_range
from onnxprune.calibration.inputs import Array, Feed, Inputs, InputSpec, is_float
from onnxprune.calibration.roles import Role, role
from onnxprune.calibration.sources import Loaded, Request
from onnxprune.errors import DataError, ModelError
from onnxprune.model import Model

# Made-up inputs are not worth more memory than this.
MAX_BYTES = 2**30
_PROBE_ROWS = (2, 1)  # some models say their batch is free and reshape to 1 inside


class Sizes(NamedTuple):
    """Sizes for the free dimensions of a model, by what they mean."""

    height: int = 224
    width: int = 224
    sequence: int = 64
    past: int = 0
    audio: int = 16000


# Tried in this order; the first that runs is taken.
_PROFILES = (
    Sizes(),
    Sizes(32, 32, 16),
    Sizes(48, 320, 128),
    Sizes(640, 640, 32),
    Sizes(64, 64, 1, past=16),
    Sizes(256, 256, 512, audio=480000),
    Sizes(28, 28, 8, audio=512),
    Sizes(512, 512, 3000),
    Sizes(8, 8, 4),
)


def load(request: Request) -> Loaded:
    """Make up ``recipe.samples`` samples.

    Raises:
        DataError: when the model runs with none of the sizes tried for its free dimensions.
    """
    maker = Maker(request.model, request.inputs, request.recipe.seed)
    sizes, rows = _fit(request.model, maker)
    inputs = request.inputs
    probe = maker.feed(sizes, inputs.rows if inputs.batched else 1)
    each = max(1, sum(a.nbytes for a in probe.values()))
    pieces = max(1, min(request.pieces, MAX_BYTES // each))
    if inputs.batched:
        samples = split_rows(maker.feed(sizes, pieces * inputs.rows), inputs, "synthetic")
    else:
        samples = [maker.feed(sizes, 1) for _ in range(pieces)]
    shapes = ", ".join(
        f"{n}[{','.join(map(str, a.shape[1:] if n in inputs.batched else a.shape))}]"
        for n, a in probe.items()
    )
    limit = rows if rows == 1 else None
    return Loaded(samples, pieces * inputs.rows, (shapes,), limit=limit)


class Maker:
    """Makes up feeds for one model; each call goes on with the same random numbers."""

    def __init__(self, model: Model, inputs: Inputs, seed: int) -> None:
        self.inputs = inputs
        self.rng = np.random.default_rng(seed)
        self.channels = {s.name: channels(model, s.name) for s in inputs.specs}
        self.features = {s.name: features(model, s.name) for s in inputs.specs}
        self.ranges = {s.name: id_range(model, s.name) for s in inputs.specs if s.dtype.kind in "iu"}

    @property
    def guesses(self) -> bool:
        """Whether a dimension besides the batch is free."""
        return any(
            not s.ranked or any(not isinstance(d, int) for d in s.shape[(s.name in self.inputs.batched) :])
            for s in self.inputs.specs
        )

    def feed(self, sizes: Sizes, rows: int) -> Feed:
        """Return one feed with ``rows`` rows in each batched input."""
        symbols: dict[str, int] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for spec in self.inputs.specs:
            shapes[spec.name] = self._shape(spec, sizes, rows, symbols)
        return {s.name: self._values(s, shapes[s.name], sizes, shapes) for s in self.inputs.specs}

    def _shape(self, spec: InputSpec, sizes: Sizes, rows: int, symbols: dict[str, int]) -> tuple[int, ...]:
        if not spec.ranked:
            return (rows, 3, sizes.height, sizes.width) if is_float(spec.dtype) else (rows, sizes.sequence)
        shape = []
        for axis, dim in enumerate(spec.shape):
            if axis == 0 and spec.name in self.inputs.batched:
                shape.append(rows)
            elif isinstance(dim, int):
                shape.append(dim)
            else:
                size = symbols[dim] if dim in symbols else self._free(spec, axis, dim, sizes)
                if dim is not None:
                    symbols.setdefault(dim, size)
                shape.append(size)
        return tuple(shape)

    def _free(self, spec: InputSpec, axis: int, dim: str | None, sizes: Sizes) -> int:
        """Return the size of one free dimension: by its name, else by its place."""
        named = _by_name((dim or "").lower(), sizes)
        if named is not None:
            return named
        rank, fed, width = len(spec.shape), self.channels[spec.name], self.features[spec.name]
        if role(spec) is Role.PAST:
            return sizes.past
        if (rank >= 4 and is_float(spec.dtype)) or spec.dtype == np.uint8:
            last = fed[0] == -1 if fed is not None else spec.shape[-1] in (1, 3, 4)
            if axis == (rank - 1 if last else 1):
                return fed[1] if fed is not None else 3
            return sizes.width if axis == (rank - 2 if last else rank - 1) else sizes.height
        if rank == 3 and axis == 1 and fed is not None:
            return fed[1]
        if axis == rank - 1 and width is not None:
            return width
        return sizes.sequence

    def _values(
        self, spec: InputSpec, shape: tuple[int, ...], sizes: Sizes, shapes: Mapping[str, tuple[int, ...]]
    ) -> Array:
        use, dtype = role(spec), spec.dtype
        if dtype.kind == "O":
            return np.full(shape, "text", dtype=object)
        if use is Role.MASK:
            return np.ones(shape, dtype)
        if use in (Role.TYPES, Role.FLAG):
            return np.zeros(shape, dtype)
        special = _special(spec, shape, sizes, shapes)
        if special is not None:
            return special
        known = self.ranges.get(spec.name)
        if use is Role.POSITIONS:
            counted = (
                np.arange(shape[-1] if shape else 1)
                if known is None
                else np.arange(shape[-1]) % (known.high + 1)
            )
            return np.broadcast_to(counted if shape else counted[0], shape).astype(dtype)
        if dtype.kind == "b":
            return self.rng.integers(0, 2, shape).astype(dtype)
        if dtype.kind in "iu":
            if known is not None:
                return self.rng.integers(known.low, max(known.high, known.low) + 1, shape).astype(dtype)
            if not shape:
                return np.ones(shape, dtype)
            return self.rng.integers(0, 256 if dtype == np.uint8 and len(shape) > 2 else 2, shape).astype(
                dtype
            )
        return self.rng.standard_normal(shape, np.float32).astype(dtype)


def _by_name(name: str, sizes: Sizes) -> int | None:
    """Return the size that a dimension's name asks for."""
    if "past" in name or "total" in name or "cache" in name:
        whole = "total" in name or "+" in name or "plus" in name
        return sizes.past + sizes.sequence if whole else sizes.past
    for pattern, size in (
        (r"batch|^n$|^bs?z?$", 1),
        (r"height|^h$|^rows$", sizes.height),
        (r"width|^w$|^cols$", sizes.width),
        (r"image|spatial", sizes.height),
        (r"sample|audio|wave", sizes.audio),
        (r"seq|len|token|time|frame|^t$|^s$|^l$", sizes.sequence),
    ):
        if re.search(pattern, name):
            return size
    return None


def _special(
    spec: InputSpec, shape: tuple[int, ...], sizes: Sizes, shapes: Mapping[str, tuple[int, ...]]
) -> Array | None:
    """Values of inputs that describe another input: lengths, image sizes, sampling rates."""
    name = spec.name.lower()
    if re.search(r"scale_factor", name):
        return np.ones(shape, spec.dtype)
    if re.search(r"(^|_)(sr|sample_rate|sampling_rate)$", name):
        return np.full(shape, 16000, spec.dtype)
    if spec.dtype.kind in "iu" and len(shape) <= 1 and re.search(r"len(gth)?s?$", name):
        return np.full(
            shape, max((s[1] for s in shapes.values() if len(s) >= 2), default=sizes.sequence), spec.dtype
        )
    if shape and shape[-1] == 2 and re.search(r"size|shape", name):
        picture = next((s for s in shapes.values() if len(s) == 4), None)
        sides = (
            (sizes.height, sizes.width)
            if picture is None
            else picture[-2:]
            if picture[1] <= 4
            else picture[1:3]
        )
        return np.broadcast_to(np.array(sides, np.float64), shape).astype(spec.dtype)
    return None


def _fit(model: Model, maker: Maker) -> tuple[Sizes, int]:
    """Return the first sizes, and the rows at once, with which the model runs."""
    rows = (maker.inputs.fixed,) if maker.inputs.fixed else _PROBE_ROWS if maker.inputs.batched else (1,)
    session = _session(model) if maker.guesses else None
    if session is None:
        return _PROFILES[0], rows[0]
    problem: Exception | None = None
    for count, sizes in ((r, p) for r in rows for p in _PROFILES):
        try:
            session.run(None, maker.feed(sizes, count))
        except Exception as error:  # ORT raises many private classes; each means that these sizes do not fit
            problem = problem or error
        else:
            return sizes, count
    raise DataError(
        f"{model.name}: the model runs with none of the sizes tried for the free dimensions of "
        f"{maker.inputs}: {problem}",
        "give real inputs with --data",
    )


def _session(model: Model) -> Any:
    """Return a session to try sizes with; None when ORT refuses the model, which a later stage reports."""
    from onnxprune import runtime

    try:
        return runtime.session(model.to_bytes(), optimize=False, name=model.name)
    except ModelError:
        return None
