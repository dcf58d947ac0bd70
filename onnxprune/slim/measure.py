"""What removing units costs: the order in which those of each group go, and how far the output moves.

One walk through the dense model. Each reader of a group gives the second moments of its inputs; its own
best units are removed at a few levels, its weight re-fitted, and the model's output compared with the dense
one. That says what a unit of relative error is worth there; the order of a group is then the best for all of
its readers together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.effect import Effects
from onnxprune.allocation.walk import walk
from onnxprune.attention.guide import NOTHING, Guide
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import Streams
from onnxprune.model import Model
from onnxprune.slim.narrowing import Narrowing, Seen, emphasis, narrowing, order_of
from onnxprune.slim.readers import Reader
from onnxprune.solvers.layer import Solution, dense_matrix, ridge
from onnxprune.solvers.reconstruct import bias_shift
from onnxprune.solvers.units import Consumer, without
from onnxprune.structure.groups import Group

LEVELS = (0.25, 0.5)  # shares of the units whose removal is tried on the whole model


def measure(
    dense: Model,
    groups: Sequence[Group],
    readers: Sequence[Reader],
    streams: Streams,
    masks: Sequence[NDArray[np.bool_] | None],
    probes: Sequence[int],
    *,
    damping: float,
    seed: int,
    criterion: str = "obs",
    outputs: bool = True,
    guide: Guide = NOTHING,
    refit: bool = True,
    levels: tuple[float, ...] = LEVELS,
    on_layer: Callable[[str], None] = lambda name: None,
) -> list[Narrowing]:
    """Order the units of every group that has readers.

    Args:
        dense: the model.
        groups: what may go.
        readers: of these groups.
        streams: one stream (dense) over the calibration batches, not advanced yet.
        masks: per batch, which tokens are real.
        probes: batches that outputs are compared on; the others give the statistics.
        damping: ridge, as a share of the mean diagonal of H.
        seed: of the choice of rows.
        criterion: obs, wanda or magnitude.
        outputs: False judges by the readers' own errors only.
        guide: which tokens and heads count more than others.
        refit: whether what stays will be re-fitted.
        levels: shares of the units whose removal is tried.
        on_layer: called after each reader.
    """
    fit = [number for number in range(streams.size) if number not in set(probes)] or list(range(streams.size))
    units = {group.name: group.units for group in groups}
    layers = list({reader.layer.name: reader.layer for reader in readers}.values())
    seen: dict[str, list[Seen]] = {}
    with Effects(dense, streams, masks, probes, on_layer) as effects:
        for stage, moments in walk(dense, layers, streams, masks, seed=seed, batches=fit, guide=guide):
            if stage.site or not isinstance(moments, Moments):
                continue
            making = effects.rest_of(stage) if outputs else None
            candidates = {}
            for layer in stage.layers:
                own = [reader for reader in readers if reader.layer is layer]
                seen[layer.name], candidates[layer.name] = _look(
                    dense, own, moments, units, damping, levels, criterion, refit
                )
            effects.measure(making, stage.layers, candidates)
    for name, divergences in effects.found.items():
        _attach(seen[name], divergences, len(levels))
    by_group: dict[str, list[Seen]] = {}
    for item in (item for items in seen.values() for item in items):
        by_group.setdefault(item.reader.group, []).append(item)
    return [
        narrowing(group, by_group[group.name], criterion, emphasis(group, guide))
        for group in groups
        if group.name in by_group
    ]


def _look(
    dense: Model,
    readers: Sequence[Reader],
    moments: Moments,
    units: Mapping[str, int],
    damping: float,
    levels: Sequence[float],
    criterion: str,
    refit: bool,
) -> tuple[list[Seen], list[Solution]]:
    """Return what one layer's readers see, and the layer without their own best units at each level."""
    layer = readers[0].layer
    biased = layer.bias is not None and refit  # and so takes up the means
    H, _, _ = moments.centred(layer.name, biased)
    share, W = ridge(moments, H, damping), dense_matrix(dense, layer)
    Q = np.einsum("goi,goj->gij", W.astype(np.float64), W.astype(np.float64), optimize=True)
    found, solutions = [], []
    for reader in readers:
        consumers = [
            Consumer(Q[g], np.asarray(H[g], np.float64), reader.unit[g], 1.0, share) for g in range(len(W))
        ]
        item = Seen(reader, consumers, refit=refit)
        found.append(item)
        order = item.order = order_of([item], units[reader.group], criterion)
        for level in levels:
            count = min(max(1, round(level * units[reader.group])), len(order.units))
            gone = np.isin(reader.unit, order.units[:count])
            weight = without(W, H, gone, share) if refit else np.where(gone[:, None, :], 0, W)
            error = float(order.costs[:, count].sum()) / item.energy
            shift = bias_shift(moments, layer.name, W, weight).ravel() if biased else None
            item.points.append((error, np.nan))
            solutions.append(Solution(weight, 0, shift, error, share))
    return found, solutions


def _attach(items: Sequence[Seen], divergences: Sequence[float], each: int) -> None:
    """Put what the model's output did beside the errors of the readers of one layer."""
    for k, item in enumerate(items):
        found = divergences[k * each : (k + 1) * each]
        if found:
            item.points = [(e, d) for (e, _), d in zip(item.points, found, strict=True)]
