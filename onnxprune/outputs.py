"""What a model's output means: scores of classes, features, or exact values.

KL divergence and top-1 agreement only make sense over classes. Nothing in an ONNX file says which
output holds classes, so :func:`output_kind` looks at three things, the surest first:

1. the op that makes it: ``Softmax`` gives probabilities, ``LogSoftmax`` gives logits;
2. the values: rows that are not negative and sum to one are probabilities, whoever made them;
3. the name, then the shape: an output named "logits" holds logits; a two-dimensional output straight
   from a Gemm, MatMul or pooled Conv is a classifier's, unless name or width say embedding.

In doubt the answer is "features": relative error is right for any output, top-1 is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.scales import find_cuts

if TYPE_CHECKING:
    from onnxprune.model import Model

LOGITS = "logits"
PROBABILITIES = "probabilities"
FEATURES = "features"
EXACT = "exact"
NONE = "not compared"
BY_NAME = "by its name"  # the reason where the name alone says features

# Softmax in fp32 sums to 1 within 1e-5, in fp16 with 1,000 classes within 5e-3.
_SUM_TOLERANCE, _SUM_TOLERANCE_HALF = 1e-4, 5e-3
# Embedding widths are multiples of 32 up to 4096 (384, 512, 768, 1024, ...); class counts rarely are.
_EMBEDDING_STEP, _EMBEDDING_MAX = 32, 4096
_MAX_WALK = 32  # nodes between an output and the op that gives it its meaning; real tails have under 10

_CLASS_WORDS = {"logit", "logits"}
_FEATURE_WORDS = frozenset(
    ("box", "boxes", "bbox", "bboxes", "coord", "coords", "embed", "embeds", "embedding", "embeddings",
     "feature", "features", "hidden", "keypoint", "keypoints", "landmark", "landmarks", "offset", "offsets",
     "pooled", "pooler", "pose", "reg", "regression", "state", "states")
)  # fmt: skip
# Ops that change the form of their input or pool it, not what its channels mean.
_TRANSPARENT = frozenset(
    ("AveragePool", "Cast", "DequantizeLinear", "Dropout", "Flatten", "Gather", "GlobalAveragePool",
     "Identity", "QuantizeLinear", "ReduceMean", "Reshape", "Resize", "Slice", "Split", "Squeeze",
     "Transpose", "Unsqueeze", "Upsample")
)  # fmt: skip
_SCALING = {"Add", "Sub", "Mul", "Div"}
_LINEAR = ("MatMul", "Gemm", "Conv", "ConvTranspose")  # endings: FusedConv and packed forms count too


LEAST = 0.1  # of the mean square of a part where it was found: what its errors are relative to at least


@dataclass(frozen=True)
class OutputKind:
    """How to compare one output.

    Attributes:
        family: logits, probabilities, features, exact (integers, booleans, text) or "not compared".
        axis: the class axis of logits and probabilities, counted in the output's full shape; of features the
            one along which ``cuts`` are.
        reason: why it was taken for that, in words.
        cuts: where values of another scale begin, see :mod:`onnxprune.scales`; features only.
        squares: mean square of each part in the batch that showed them: what errors are relative to at least,
            so that a sample without anything in one (an image without objects) does not count for all.
        counts: False where class outputs speak for it, see :mod:`onnxprune.answers`.
        information: of class outputs beside others that count, in nats a row.
    """

    family: str
    axis: int = -1
    reason: str = ""
    cuts: tuple[int, ...] = ()
    squares: tuple[float, ...] = ()
    counts: bool = True
    information: float = 0.0

    @property
    def classes(self) -> bool:
        """True when KL divergence and top-1 agreement make sense."""
        return self.family in (LOGITS, PROBABILITIES)

    def floors(self, shape: tuple[int, ...]) -> list[float]:
        """Return the least mean square that errors are relative to, of each part of :meth:`parts`."""
        count = len(self.parts(shape))
        return [LEAST * square for square in self.squares] if len(self.squares) == count else [0.0] * count

    def parts(self, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
        """Return the parts of an output of this shape, as indices; all of it where there are no others."""
        if not self.cuts or self.axis >= len(shape) or shape[self.axis] <= self.cuts[-1]:
            return [()]
        before = (slice(None),) * (self.axis % len(shape))
        bounds = (0, *self.cuts, shape[self.axis])
        return [(*before, slice(a, b)) for a, b in pairwise(bounds)]


@dataclass(frozen=True)
class _Origin:
    """The op that gives an output its meaning: what is found behind reshapes, casts and biases."""

    op: str
    axis: int | None = None
    weighted: bool = False  # one of its inputs is a constant

    @property
    def linear(self) -> bool:
        # Two activations multiplied are similarities or attention, no classifier.
        return self.weighted and self.op.endswith(_LINEAR)

    @property
    def convolution(self) -> bool:
        return self.op.endswith(("Conv", "ConvTranspose"))


def is_float(dtype: np.dtype[Any]) -> bool:
    """True for float16, float32, float64 and the float types of ml_dtypes (bfloat16, float8)."""
    return bool(np.issubdtype(dtype, np.floating)) or (dtype.kind == "V" and "float" in dtype.name)


def output_kind(name: str, value: Any, model: Model | None = None) -> OutputKind:
    """Decide how the output ``name`` can be compared.

    Args:
        name: of the graph output.
        value: what the dense model gave for one batch.
        model: the dense model, for the op that makes the output; without it only values and names count.
    """
    if not isinstance(value, np.ndarray):
        return OutputKind(NONE, reason=f"a {type(value).__name__}, not a tensor")
    if not is_float(value.dtype):
        return OutputKind(EXACT, reason=f"{value.dtype} values")
    origin = _origin(model, name) if model is not None else None
    words = set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    kind = _by_sum(value, origin) or _by_name_and_shape(value, origin, words)
    found = None if kind.classes else find_cuts(value, _fixed_axes(name, value, model))
    if found is None:
        return kind
    reason = f"{kind.reason}; axis {found[0]} has parts of different scales"
    kind = replace(kind, axis=found[0], cuts=found[1], reason=reason)
    parts = [np.square(value[part].astype(np.float64)) for part in kind.parts(value.shape)]
    return replace(kind, squares=tuple(float(part.mean()) for part in parts))


def _fixed_axes(name: str, value: NDArray[Any], model: Model | None) -> list[int]:
    """Return the axes behind the batch whose lengths the model declares; without a model all of them."""
    axes = range(1, value.ndim)
    declared = model.index.outputs.get(name) if model is not None else None
    if declared is None:
        return list(axes) if model is None else []
    dims = declared.type.tensor_type.shape.dim
    return [axis for axis in axes if len(dims) == value.ndim and dims[axis].dim_value == value.shape[axis]]


def _by_sum(value: NDArray[Any], origin: _Origin | None) -> OutputKind | None:
    """Recognise probabilities (and their logarithms) by their sum over the class axis."""
    made_by = origin.op if origin else ""
    axes = [value.ndim - 1, 1, *range(2, value.ndim - 1)]
    if origin is not None and origin.axis is not None:
        axes.insert(0, origin.axis if origin.axis >= 0 else origin.axis + value.ndim)
    for axis in dict.fromkeys(a for a in axes if 0 <= a < value.ndim and value.shape[a] >= 2):
        if value.size and _normalised(value, axis):
            reason = f"made by {made_by}" if made_by == "Softmax" else "not negative, sums to one"
            return OutputKind(PROBABILITIES, axis, f"{reason} (axis {axis})")
        if value.size and made_by != "Softmax" and float(value.max()) <= 0 and _normalised_exp(value, axis):
            return OutputKind(LOGITS, axis, f"logarithms of probabilities (axis {axis})")
    return None


def _normalised(value: NDArray[Any], axis: int) -> bool:
    if not float(value.min()) >= 0:
        return False
    tolerance = _SUM_TOLERANCE if value.dtype.itemsize > 2 else _SUM_TOLERANCE_HALF
    return bool(np.all(np.abs(value.sum(axis=axis, dtype=np.float64) - 1) < tolerance))


def _normalised_exp(value: NDArray[Any], axis: int) -> bool:
    # Not in float64: the type says how exact the sum can be.
    return _normalised(np.exp(value), axis)


def _by_name_and_shape(value: NDArray[Any], origin: _Origin | None, words: set[str]) -> OutputKind:
    made_by = f"made by {origin.op}" if origin else "nothing says that it holds classes"
    if value.ndim < 2:
        return OutputKind(FEATURES, reason="fewer than two axes")
    # Convolutions put classes on axis 1 (segmentation); so does a map of rank 4 and more from anywhere else.
    channels_first = value.ndim >= 3 and (origin.convolution if origin else value.ndim >= 4)
    axis = 1 if channels_first else value.ndim - 1
    width = value.shape[axis]
    if width < 2:
        return OutputKind(FEATURES, reason="one value per row")
    if words & _CLASS_WORDS:
        return OutputKind(LOGITS, axis, f"by its name (axis {axis})")
    if words & _FEATURE_WORDS:
        return OutputKind(FEATURES, reason=BY_NAME)
    if origin is None or not origin.linear:
        return OutputKind(FEATURES, reason=made_by)
    if width > _EMBEDDING_MAX:
        return OutputKind(LOGITS, axis, f"{made_by}, {width} classes")
    if value.ndim > 2:
        return OutputKind(FEATURES, reason=f"{made_by}, rank {value.ndim}")
    if width % _EMBEDDING_STEP == 0:
        return OutputKind(FEATURES, reason=f"{made_by}, {width} wide like an embedding")
    return OutputKind(LOGITS, axis, f"{made_by}, {width} classes")


def _origin(model: Model, name: str) -> _Origin | None:
    """Walk from an output towards the inputs to the first op that is more than a change of form."""
    for _ in range(_MAX_WALK):
        position = model.index.producer.get(name)
        if position is None:
            return None
        node = model.graph.node[position]
        inputs = [i for i in node.input if i]
        if node.domain in ("", "ai.onnx"):
            if node.op_type in ("Softmax", "LogSoftmax"):
                # A hint among axes that sum to one; before opset 13 it also says where to flatten.
                axis = next((a.i for a in node.attribute if a.name == "axis"), None)
                return _Origin(node.op_type, axis)
            if node.op_type in _TRANSPARENT and inputs:
                name = inputs[0]
                continue
            if node.op_type in _SCALING:
                moving = [i for i in inputs if not _constant(model, i)]
                if len(moving) == 1:
                    name = moving[0]
                    continue
        return _Origin(node.op_type, weighted=any(_constant(model, i) for i in inputs))
    return None


def _constant(model: Model, name: str) -> bool:
    """True for a weight, also behind a cast or a dequantisation."""
    for _ in range(_MAX_WALK):
        if name in model.index.tensors:
            return True
        position = model.index.producer.get(name)
        if position is None:
            return False
        node = model.graph.node[position]
        if node.op_type == "Constant":
            return True
        if node.op_type not in ("Identity", "Cast", "DequantizeLinear"):
            return False
        name = node.input[0]
    return False
