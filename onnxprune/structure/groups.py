"""What can be removed from a model as a whole: groups of units, and where each unit lies in the weights.

A *unit* is the smallest thing that can go: a channel, a neuron, an attention head, a hidden unit of a
recurrent layer. A *group* holds units of the same kind: they lie on the same axes of the same tensors.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["producer", "consumer", "other"]
Kind = Literal["channel", "neuron", "head", "hidden", "width"]
Axis = NDArray[np.int64] | str  # a label for each position, or why no position can go


@dataclass(frozen=True)
class Part:
    """How the units of a group lie on one axis of one stored tensor.

    Attributes:
        tensor: name of the initializer or the ``Constant``.
        axis: of the stored tensor.
        index: int64 (length of the axis,), the unit at each position, -1 where none of this group lies.
        role: ``producer``: the positions make the units (rows of a weight); ``consumer``: they read them
            (columns); ``other``: they go along (biases, scales, depthwise kernels, slopes).
        reads: whether the positions read the units: consumers, and tied tables, which also make them.
        zero: whether masked units are zero here although nothing reads them here, since a sum along the
            units needs that (:mod:`onnxprune.structure.rules.silence`).
    """

    tensor: str
    axis: int
    index: NDArray[np.int64]
    role: Role
    reads: bool
    zero: bool = False

    @property
    def masked(self) -> bool:
        """Whether masking a unit makes its positions zero."""
        return self.reads or self.zero


@dataclass(frozen=True)
class Group:
    """Units of the same kind; any of them may go, but not all.

    Attributes:
        name: of the first node that makes them; each group of a model has another.
        kind: what a unit is. ``width``: a feature of the stream that residual additions share.
        units: their number.
        parts: every axis of every stored tensor that shrinks.
        nodes: the nodes that read those tensors.
        weights: int64 (units,), elements that go with each unit alone.
        labels: int64 (units,), the labels of the units in :class:`Layout`.
    """

    name: str
    kind: Kind
    units: int
    parts: tuple[Part, ...]
    nodes: tuple[str, ...]
    weights: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def producers(self) -> tuple[Part, ...]:
        """Where the units are made."""
        return tuple(part for part in self.parts if part.role == "producer")

    @property
    def consumers(self) -> tuple[Part, ...]:
        """Where the units are read."""
        return tuple(part for part in self.parts if part.role == "consumer")


@dataclass(frozen=True)
class Pinned:
    """Dimensions of weights that cannot shrink, and why.

    Attributes:
        name: of the first node or weight they lie in.
        kind: as in :class:`Group`.
        size: number of units.
        reason: one plain phrase.
    """

    name: str
    kind: Kind
    size: int
    reason: str


@dataclass(frozen=True)
class Layout:
    """What is known of all values of a model: needed to remove units, not to choose them.

    Attributes:
        sizes: value -> its shape in the sample run.
        axes: value -> for each axis the label of each position, or why none of them can go.
        numbers: value -> its content, for small integer and boolean ones; other inputs may give others.
    """

    sizes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, tuple[Axis, ...]]
    numbers: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Structure:
    """The dependency graph of a model: what can go together, what cannot go and why."""

    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    layout: Layout = field(repr=False)

    def group(self, name: str) -> Group:
        """Return the group called ``name``.

        Raises:
            KeyError: when there is none.
        """
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def inside(self, tensor: str) -> int:
        """Return how many elements of a stored tensor go with some unit of a group."""
        shape = self.layout.sizes[tensor]
        free = [np.ones(size, bool) for size in shape]
        for part in self._parts.get(tensor, ()):
            free[part.axis] &= part.index < 0
        return math.prod(shape) - math.prod(int(axis.sum()) for axis in free)

    @cached_property
    def _parts(self) -> dict[str, list[Part]]:
        parts = defaultdict[str, list[Part]](list)
        for group in self.groups:
            for part in group.parts:
                parts[part.tensor].append(part)
        return parts
