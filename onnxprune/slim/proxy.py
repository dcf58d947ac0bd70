"""Groups that not only layers read, whose inputs can be re-fitted: an Einsum, a weight behind a Transpose.

Units go by the size of what reads them: the squared norm of their columns, each weight counted by what the
output loses without its columns. What removing them does is measured on the
output with the units masked, at a few levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.answers import output_kinds
from onnxprune.calibration.streams import run
from onnxprune.divergence import total_divergence
from onnxprune.inmemory import session_of
from onnxprune.model import Model
from onnxprune.slim.damage import scaled
from onnxprune.slim.measure import LEVELS
from onnxprune.slim.narrowing import FEWEST, Narrowing
from onnxprune.structure.groups import Group, Part, Structure
from onnxprune.structure.masking import mask_units


def narrowings_by_size(
    dense: Model,
    structure: Structure,
    groups: Sequence[Group],
    batches: Sequence[Mapping[str, Any]],
    masks: Sequence[NDArray[np.bool_] | None],
    threads: int | None = None,
) -> list[Narrowing]:
    """Order the units of groups that not only layers read.

    Args:
        dense: the model.
        structure: of it.
        groups: what may go.
        batches: that outputs are compared on.
        masks: per batch, which tokens are real.
        threads: of ONNX Runtime.
    """
    if not groups:
        return []
    names = list(dense.index.outputs)
    session = session_of(dense, threads=threads)
    inputs = [item.name for item in session.get_inputs()]
    feeds = [{name: batch[name] for name in inputs} for batch in batches]
    wanted = [run(session, names, feed) for feed in feeds]
    rows = sum(len(found[0]) if found[0].ndim else 1 for found in wanted)

    named = [dict(zip(names, found, strict=True)) for found in wanted]
    more = zip(named[1:], masks[1:], strict=True)
    kinds = list(output_kinds(named[0], dense, mask=masks[0], more=more).values())

    def moved(changed: Model) -> float:
        masked = session_of(changed, threads=threads, name=dense.name)
        total = 0.0
        for feed, reference, mask in zip(feeds, wanted, masks, strict=True):
            total += total_divergence(kinds, reference, run(masked, names, feed), mask)
        return total / max(rows, 1)

    found = []
    for group in groups:
        reading = [part for part in group.parts if part.reads]
        worth = [moved(_without(dense, part)) for part in reading] if len(reading) > 1 else None
        size = unit_sizes(dense, group, worth)
        order = np.argsort(size, kind="stable")[: group.units - max(1, round(group.units / FEWEST))]
        lost = np.concatenate([[0.0], np.cumsum(size[order])]) / max(float(size.sum()), 1e-300)
        points = []
        for level in LEVELS:
            count = min(max(1, round(level * group.units)), len(order))
            gone = np.isin(np.arange(group.units), order[:count])
            points.append((float(lost[count]), moved(mask_units(dense, structure, {group.name: gone}))))
        found.append(Narrowing(group, order.astype(np.int64), scaled(lost, points), lost))
    return found


def _without(model: Model, part: Part) -> Model:
    """Return a copy in which a weight reads none of the units."""
    result = model.copy()
    array = np.array(result.array(part.tensor))
    np.moveaxis(array, part.axis, 0)[part.index >= 0] = 0
    result.set_array(part.tensor, array)
    return result


def unit_sizes(model: Model, group: Group, worth: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Return the squared norm of what reads each unit, each weight relative to its own: (units,).

    Args:
        model: the model.
        group: of it.
        worth: of each of the weights that read the group, in order; None: all count alike.
    """
    sizes = np.zeros(group.units)
    reading = [part for part in group.parts if part.reads]
    if worth is None or not any(worth):
        worth = [1.0] * len(reading)
    for part, factor in zip(reading, worth, strict=True):
        array = np.square(model.array(part.tensor).astype(np.float64))
        column = np.moveaxis(array, part.axis, 0).reshape(len(part.index), -1).sum(1)
        owned = part.index >= 0
        sums = np.bincount(part.index[owned], column[owned], minlength=group.units)
        sizes += factor * sums / max(float(sums.sum()), 1e-300)
    return sizes
