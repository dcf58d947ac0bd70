"""Who reads the units of a group: layers, with the unit that each of their input features belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxprune.layers import Layer
from onnxprune.structure.groups import Group, Part


@dataclass(frozen=True)
class Reader:
    """A layer that reads units of a group.

    Attributes:
        group: name of the group.
        layer: the layer.
        unit: (groups of the layer, in_features) unit of each input feature, -1 for those of none.
    """

    group: str
    layer: Layer
    unit: NDArray[np.int64] = field(repr=False)


def find_readers(groups: Sequence[Group], layers: Sequence[Layer]) -> list[Reader]:
    """Return the readers of all groups, in the order of the groups."""
    by_name = {layer.name: layer for layer in layers}
    found = []
    for group in groups:
        for part in (part for part in group.parts if part.reads):
            layer = by_name.get(part.tensor)
            if layer is not None and layer.kind != "embedding":
                unit = positions(layer, part)
                if (unit == unit[:, :1]).all():
                    found.append(Reader(group.name, layer, unit[:, 0]))
    return found


def judged(groups: Sequence[Group], readers: Sequence[Reader]) -> list[Group]:
    """Return the groups of which each place that reads the units has a reader.

    What else reads them, such as an Einsum or a weight behind a Transpose, would count as nothing: a unit
    that only it reads would go first.
    """
    known = Counter(reader.group for reader in readers)
    return [group for group in groups if 0 < known[group.name] == sum(part.reads for part in group.parts)]


def positions(layer: Layer, part: Part) -> NDArray[np.int64]:
    """Return the unit at each position of the layer's matrix: (groups, out_features, in_features)."""
    shape = [1] * len(layer.view.stored)
    shape[part.axis] = len(part.index)
    return np.asarray(
        layer.view.to_matrix(np.broadcast_to(part.index.reshape(shape), layer.view.stored)), dtype=np.int64
    )
