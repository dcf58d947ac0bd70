"""Labels on the positions of every axis: what one operator says about another becomes one graph of labels.

Each position of each axis of each stored tensor has a label. Operators join labels that must go together and
pin those that must stay; the connected components are the units (DepGraph: Fang et al., CVPR 2023, where an
edge joins whole dimensions of two layers; here it joins positions, so concatenation and splits are exact).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.model import Model
from onnxprune.passes.shapes import Shapes, infer
from onnxprune.storage.edit import is_overridable
from onnxprune.structure.groups import Axis, Role

SINGLE = "a single one"
Place = tuple[str, int]  # a value and one of its axes
Need = tuple[Place, ...] | str  # what must be zero so that something else is, or why it cannot be


class RuleError(Exception):
    """An operator is used in a way that its rule does not know; the text is the reason to pin."""


class Labels:
    """The labels of one model while the operators are visited in graph order.

    Args:
        model: the model.
        sizes: value -> shape.
        numbers: integer or boolean value -> content.
    """

    def __init__(
        self, model: Model, sizes: dict[str, tuple[int, ...]], numbers: dict[str, NDArray[Any]]
    ) -> None:
        self.model, self.sizes, self.numbers = model, sizes, numbers
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.constants = set(model.index.tensors)  # weights, also those that a shape cuts out
        self.unchanging = set(model.index.tensors)  # values that no input of the model reaches
        self.origins: dict[str, NDArray[Any]] = {}  # integer value -> the sizes behind each element
        # Of onnxprune.structure.rules.silence: what must be zero for what, after so many nodes, and what is
        self.needs: dict[Place, Need] = {}
        self.followed, self.silent = 0, set[Place]()
        self._weak: set[int] = set()  # first labels of axes that copies or equal values make
        self.count = 0
        self._pairs: list[NDArray[np.int64]] = []
        self._pins: list[tuple[NDArray[np.int64], str]] = []
        self._marks: list[tuple[NDArray[np.int64], str]] = []

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value.

        Raises:
            RuleError: when it is not known.
        """
        if name not in self.sizes:
            raise RuleError("a value of unknown shape")
        return self.sizes[name]

    def fresh(self, size: int) -> NDArray[np.int64]:
        """Return new labels, (size,)."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def fresh_weak(self, size: int) -> NDArray[np.int64]:
        """Return new labels for positions that no weight makes: they give way to those of weights."""
        self._weak.add(self.count)
        return self.fresh(size)

    def is_weak(self, axis: Axis) -> bool:
        """Whether the labels come from :meth:`fresh_weak`."""
        return not isinstance(axis, str) and int(axis[0]) in self._weak

    def read(self, name: str) -> tuple[Axis, ...]:
        """Return the axes of a value; stored tensors get labels when they are first read."""
        if name not in self.axes:
            stored = name in self.model.index.tensors
            given = name in self.model.index.inputs
            why = f"it is a dimension of {'the graph input ' if given else ''}{name!r}"
            self.axes[name] = tuple(
                SINGLE if size == 1 else self.fresh(size) if stored else why for size in self.shape(name)
            )
            if stored and is_overridable(self.model, name):
                for axis in self.axes[name]:
                    self.pin(axis, f"callers may give another {name!r}")
        return self.axes[name]

    def write(self, name: str, axes: Sequence[Axis]) -> None:
        """Give a value its axes.

        Raises:
            RuleError: when they do not fit its shape: then the rule is wrong about this operator.
        """
        if not name:
            return
        shape = self.shape(name)
        lengths = [
            size if isinstance(axis, str) else len(axis) for axis, size in zip(axes, shape, strict=False)
        ]
        if len(axes) != len(shape) or tuple(lengths) != shape:
            raise RuleError("a form that is not known")
        self.axes[name] = tuple(SINGLE if n == 1 else axis for n, axis in zip(shape, axes, strict=True))

    def join(self, a: Axis, b: Axis) -> Axis:
        """Let the positions of two axes go together; return the axis that stands for both.

        Labels that are pinned by it are not returned but the reason, so that they follow no further.
        """
        if isinstance(a, str) or isinstance(b, str):
            self.pin(a, b if isinstance(b, str) else "")
            self.pin(b, a if isinstance(a, str) else "")
            return a if isinstance(a, str) else b
        if len(a) != len(b):
            raise RuleError("axes of different lengths")
        if a is not b:
            self._pairs.append(np.stack([a, b]))
        return a

    def tie(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Let the labels of each row go together; return one of each, (number of rows,)."""
        first = rows[:, :1]
        if rows.shape[1] > 1:
            self._pairs.append(
                np.stack([np.broadcast_to(first, rows[:, 1:].shape).ravel(), rows[:, 1:].ravel()])
            )
        return rows[:, 0]

    def pin(self, axis: Axis, reason: str) -> None:
        """Forbid that a position of ``axis`` goes."""
        if not isinstance(axis, str) and len(axis):
            self._pins.append((axis, reason))

    def mark(self, axis: Axis, what: Role | str) -> None:
        """Note what the positions of ``axis`` are: a role in a stored tensor, or the kind of a unit."""
        if not isinstance(axis, str):
            self._marks.append((axis, what))

    def as_labels(self, axis: Axis, size: int) -> NDArray[np.int64]:
        """Return labels for an axis, pinned ones where it has none."""
        if isinstance(axis, str):
            labels = self.fresh(size)
            self.pin(labels, axis)
            return labels
        return axis

    def number(self, name: str) -> NDArray[np.int64] | None:
        """Return the content of a small integer value, as it is in the sample run."""
        stored = name in self.model.index.tensors
        array = self.model.array(name) if stored else self.numbers.get(name)
        return None if array is None or array.dtype.kind not in "iu" else np.asarray(array, np.int64)

    def varies(self, name: str) -> NDArray[np.bool_]:
        """Whether other inputs of the model may give another number: one answer an element, flat."""
        count = math.prod(self.shape(name))
        if name in self.unchanging:
            return np.zeros(count, bool)
        if name not in self.origins:
            return np.ones(count, bool)
        return np.array([
            not all(value and self._is_static(value, axis) for value, axis in behind)
            for behind in self.origins[name].ravel().tolist()
        ], bool)  # fmt: skip

    def _is_static(self, name: str, axis: int) -> bool:
        """Whether an axis of a value has one size for every input of the model."""
        found = self.read(name)[axis]
        if not isinstance(found, str) and not self.is_weak(found):  # weights give it its size
            return True
        dims = self._types.dims(name)
        return dims is not None and isinstance(dims[axis], int)

    @cached_property
    def _types(self) -> Shapes:
        return Shapes(infer(self.model))

    def node_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Return the names of the inputs that are there."""
        return [name for name in node.input if name]

    def solve(self) -> tuple[NDArray[np.int64], dict[int, str], dict[str, NDArray[np.bool_]]]:
        """Return the unit of each label, unit -> why it is pinned, and mark -> whether each label has it."""
        pairs = (
            np.concatenate([p.reshape(2, -1) for p in self._pairs], 1)
            if self._pairs
            else np.empty((2, 0), np.int64)
        )
        links: Any = coo_array(
            (np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(self.count, self.count)
        )
        units = (
            connected_components(links, directed=False)[1].astype(np.int64)
            if self.count
            else np.empty(0, np.int64)
        )
        reasons: dict[int, str] = {}
        for labels, reason in self._pins:
            for unit in np.unique(units[labels]):
                if not reasons.get(int(unit)):
                    reasons[int(unit)] = reason
        marks: dict[str, NDArray[np.bool_]] = {}
        for labels, what in self._marks:
            marks.setdefault(what, np.zeros(self.count, bool))[labels] = True
        return units, reasons, marks
