"""What the model wants to be fed, and which axis is the batch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.model import Model

Array = NDArray[Any]
Feed = dict[str, Array]

# Names that exporters give to dimensions they know nothing about; two of them need not be equal.
_ANONYMOUS = re.compile(r"^(\?|-1|none|unk|unknown|)$", re.IGNORECASE)
_BATCH = re.compile(r"batch|^(n|b|bs|bsz)$", re.IGNORECASE)
# Numbered by an exporter, one for each place (unk__12, DynamicDimension.3): no word on which sizes are equal.
_NUMBERED = re.compile(r"\d$")
_SEQUENCE = re.compile(r"seq|len|token|time|frame|phon|past|^(t|l|s)$", re.IGNORECASE)


@dataclass(frozen=True)
class InputSpec:
    """One input of the model.

    Attributes:
        dtype: numpy type to feed; ``object`` for strings, ``ml_dtypes.bfloat16`` for bfloat16.
        shape: int = fixed, str = symbolic name, None = unknown.
        ranked: False when the model does not even say how many dimensions there are.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    ranked: bool = True

    def __str__(self) -> str:
        return f"{self.name}: {self.type}"

    @property
    def type(self) -> str:
        """How messages write it, such as ``float32[N,3,224,224]``."""
        dims = ",".join("?" if d is None else str(d) for d in self.shape)
        return f"{'string' if self.dtype.kind == 'O' else self.dtype.name}[{dims if self.ranked else '...'}]"


@dataclass(frozen=True)
class Inputs:
    """All inputs of a model and what their first axis means.

    Attributes:
        batched: inputs whose axis 0 is the batch. Empty: the model has no common batch axis (such as
            sequence-first recurrent nets), so a whole feed counts as one sample.
        fixed: rows that every batch must have, or None when the batch axis is free.
        labels: array beside the inputs that holds the labels, see :mod:`onnxprune.calibration.labels`.
    """

    specs: tuple[InputSpec, ...]
    batched: frozenset[str]
    fixed: int | None
    labels: str | None = None

    @property
    def rows(self) -> int:
        """Rows of the smallest piece that batches are made of."""
        return self.fixed or 1

    def named(self, name: str) -> InputSpec:
        """Return the input called ``name``."""
        return next(s for s in self.specs if s.name == name)

    def __str__(self) -> str:
        return ", ".join(str(s) for s in self.specs)


def input_specs(model: Model) -> tuple[InputSpec, ...]:
    """Return the real inputs of ``model`` (not its initializers), in graph order.

    Raises:
        ModelError: for an input that is no tensor, or of a type numpy cannot hold.
    """
    specs = []
    for name, value in model.index.inputs.items():
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            found = (kind or "untyped").removesuffix("_type").replace("_", " ")
            raise ModelError(f"{model.name}: input {name!r} is {found}, only tensor inputs can be calibrated")
        tensor = value.type.tensor_type
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except KeyError:
            raise ModelError(
                f"{model.name}: input {name!r} has unknown element type {tensor.elem_type}"
            ) from None
        shape = tuple(_dimension(d) for d in tensor.shape.dim)
        specs.append(InputSpec(name, dtype, shape, ranked=tensor.HasField("shape")))
    return tuple(specs)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value > 0 else None  # old exporters write 0 or -1 for "any"
    return None if _ANONYMOUS.match(dim.dim_param) else str(dim.dim_param)


def model_inputs(model: Model) -> Inputs:
    """Return the inputs of ``model`` together with their batch axis.

    Where every first axis is fixed, and to the same number, that number is the batch. It is 1 where only the
    name says that the batch is free, and every output has one row however many go in. Else the batch is
    axis 0 of the inputs where it is free, unless its symbol says something else: a sequence, or a later
    axis of some input; symbols called like a batch win over others, and two others are none. Inputs without
    batch axis are shared by all samples (``scales[3]``). When that leaves doubt, a feed is never taken apart.

    Raises:
        ModelError: as :func:`input_specs`, and when there is no input at all.
    """
    specs = input_specs(model)
    if not specs:
        raise ModelError(f"{model.name}: the graph has no inputs, there is nothing to calibrate")
    free = [s for s in specs if not s.ranked or (s.shape and not isinstance(s.shape[0], int))]
    if free:
        batched = _free_batch(specs, free)
        fixed = 1 if batched and all(_called_batch(s) for s in batched) and _gives_one_row(model) else None
        return Inputs(specs, frozenset(s.name for s in batched), fixed)
    firsts = {s.shape[0] for s in specs if s.shape}
    if len(firsts) != 1 or (len(specs) == 1 and _single_image(specs[0].shape)):
        return Inputs(specs, frozenset(), None)
    first = firsts.pop()
    assert isinstance(first, int)
    return Inputs(specs, frozenset(s.name for s in specs if s.shape), first)


def _free_batch(specs: tuple[InputSpec, ...], free: list[InputSpec]) -> list[InputSpec]:
    """Return the inputs whose free axis 0 is the batch; none where that is in doubt."""
    later = {d for s in specs for d in s.shape[1:] if isinstance(d, str)}
    first = {s.name: s.shape[0] if s.ranked else None for s in free}
    symbols = {d for d in first.values() if isinstance(d, str)}
    if any(_BATCH.search(d) for d in symbols):
        symbols = {d for d in symbols if _BATCH.search(d)}
    symbols = {d for d in symbols if d not in later and (_BATCH.search(d) or not _SEQUENCE.search(d))}
    if len({d for d in symbols if not (_BATCH.search(d) or _NUMBERED.search(d))}) > 1:
        return []  # nodes and edges of a graph, which refer to each other
    batched = [s for s in free if first[s.name] is None or first[s.name] in symbols]
    shared = [s for s in specs if s not in batched]
    if any(_BATCH.search(d) for d in later) or any(None in s.shape for s in shared):
        return []  # the batch is an axis further in, or may be
    if not any(len(s.shape) > 1 or not s.ranked for s in batched):
        return []  # a lone vector: its axis may as well be time
    return batched


def _called_batch(spec: InputSpec) -> bool:
    return spec.ranked and isinstance(spec.shape[0], str) and bool(_BATCH.search(spec.shape[0]))


def _gives_one_row(model: Model) -> bool:
    """Whether every output is declared as (1, ...): such graphs have the batch of their export baked in."""
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.output]
    return bool(shapes) and all(len(dims) > 1 and dims[0].dim_value == 1 for dims in shapes)


def _single_image(shape: tuple[int | str | None, ...]) -> bool:
    """Whether a fixed shape is one picture without a batch axis: (3, H, W) or (H, W, 3)."""
    if len(shape) != 3 or any(not isinstance(d, int) for d in shape):
        return False
    return shape[0] == 3 or shape[2] == 3


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is a floating type, bfloat16 and float8 included."""
    return dtype.name.startswith(("float", "bfloat"))
