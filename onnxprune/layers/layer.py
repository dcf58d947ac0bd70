"""What a layer is: one prunable weight with every node that uses it, seen as a matrix.

Solvers see it as ``W (groups, out_features, in_features)``; what cannot be seen like this is returned
as a :class:`Skip` with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

Kind = Literal["conv", "conv_transpose", "gemm", "matmul", "embedding", "rnn_input", "rnn_recurrence"]
RECURRENT = ("rnn_input", "rnn_recurrence")
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


class RefusalError(Exception):
    """Raised when a use of a weight cannot be seen as a matrix product."""


@dataclass(frozen=True)
class MatrixView:
    """How a stored tensor is seen as ``W (groups, out_features, in_features)``.

    The stored tensor is reshaped to ``split``, its axes are permuted by ``perm`` and it is reshaped
    to ``matrix``; :meth:`to_stored` does the reverse.
    """

    stored: tuple[int, ...]
    split: tuple[int, ...]
    perm: tuple[int, ...]
    matrix: tuple[int, int, int]

    def to_matrix(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return ``array`` (stored shape) as (groups, out_features, in_features)."""
        return array.reshape(self.split).transpose(self.perm).reshape(self.matrix)

    def to_stored(self, matrix: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return ``matrix`` (groups, out_features, in_features) in the stored shape."""
        permuted = tuple(self.split[axis] for axis in self.perm)
        inverse = tuple(int(axis) for axis in np.argsort(self.perm))
        return np.ascontiguousarray(matrix.reshape(permuted).transpose(inverse).reshape(self.stored))


@dataclass(frozen=True)
class Window:
    """The sliding window of a convolution; one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # begin..., end... as in ONNX
    auto_pad: str


@dataclass(frozen=True)
class Bias:
    """A constant that shifts the layer's output: ``output = W x + sign * scale * value``.

    ``sign`` is -1 for the running mean of a BatchNormalization that follows the layer. ``half`` says which
    half of the last axis is the layer's: recurrent nodes keep the biases of W and those of R in one tensor.
    """

    name: str
    sign: int
    scale: float
    half: int | None = None

    def part(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the view of ``array``, which holds the constant's values, that is the layer's own."""
        return array if self.half is None else np.split(array, 2, axis=-1)[self.half]


@dataclass(frozen=True)
class Reset:
    """The gate of a GRU that multiplies the state before the recurrence does (``linear_before_reset`` 0).

    Attributes:
        weights: names of the node's W, R and, where it has one, B.
        functions: per direction, ``sigmoid`` or ``hardsigmoid`` (alpha 0.2, beta 0.5).
        clip: bound of what goes into it, or None.
    """

    weights: tuple[str, ...]
    functions: tuple[str, ...]
    clip: float | None = None


@dataclass(frozen=True)
class Recurrence:
    """How an LSTM, GRU or RNN steps through its input, as far as it matters to one of its weights.

    Attributes:
        x: the node's input.
        batch_first: whether the batch is the first axis of ``x``, not the steps (``layout`` 1).
        lengths: the value that holds the number of real steps of each sequence, else "".
        initial: the value that holds the states before the first step, else "": zeros. For R only.
        reverse: per direction, whether it goes backwards in time. For R only.
        reset: what the states are multiplied by for the candidate gate. For R of such a GRU only.
    """

    x: str
    batch_first: bool
    lengths: str = ""
    initial: str = ""
    reverse: tuple[bool, ...] = ()
    reset: Reset | None = None


@dataclass(frozen=True)
class Site:
    """One node that uses the weight.

    Attributes:
        node: position in graph order.
        input: the activation that the weight multiplies (indices for an embedding; for the R of a recurrent
            node its states, see :func:`onnxprune.layers.recurrent.states_name`).
        output: what the node produces.
        residual: the other operand when the output (after its bias) goes into an Add, else "".
        recurrence: of a recurrent node.
    """

    node: int
    input: str
    output: str
    residual: str = ""
    recurrence: Recurrence | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The values that say what the weight multiplies: the input, and those of a recurrence."""
        if self.recurrence is None:
            return (self.input,)
        more = (
            self.recurrence.lengths,
            self.recurrence.initial,
            *[self.recurrence.x] * bool(self.recurrence.reset),
        )
        return tuple(dict.fromkeys((self.input, *filter(None, more))))


@dataclass(frozen=True)
class Layer:
    """One prunable weight; ``name`` is the key used everywhere."""

    name: str
    kind: Kind
    view: MatrixView
    dtype: np.dtype[np.generic]
    sites: tuple[Site, ...]
    nodes: tuple[str, ...]
    window: Window | None = None
    bias: Bias | None = None
    transposed_input: bool = False  # the activation's features lie on its last but one axis
    alpha: float = 1.0  # output = alpha * W x

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.view.stored))

    @property
    def groups(self) -> int:
        """Independent matrices: of a convolution its groups, of a MatMul its batch, of R its directions."""
        return self.view.matrix[0]

    @property
    def depthwise(self) -> bool:
        """True for a convolution with one input channel per group."""
        return (
            self.window is not None
            and self.groups > 1
            and self.view.matrix[2] == int(np.prod(self.window.kernel))
        )


@dataclass(frozen=True)
class Skip:
    """A weight that is left alone, and why."""

    name: str
    node: str
    size: int
    reason: str


def why_skipped(skips: Sequence[Skip], most: int = 3) -> str:
    """Return the reasons why weights are left alone, those of most elements first; empty without any.

    Of reasons that differ only in numbers and names, that of the largest weight is given.

    >>> why_skipped([Skip("a", "", 8, "too small: 8 elements"), Skip("b", "", 9, "too small: 9 elements")])
    'too small: 9 elements'
    """
    kinds: dict[str, list[Skip]] = {}
    for skip in skips:
        kinds.setdefault(skip.reason.partition(": ")[0], []).append(skip)
    order = sorted(kinds.values(), key=lambda found: -sum(skip.size for skip in found))
    return "; ".join(max(found, key=lambda skip: skip.size).reason for found in order[:most])
