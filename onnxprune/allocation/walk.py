"""Go through the dense model once, stage by stage: what every measurement before pruning is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.attention.guide import NOTHING, Guide
from onnxprune.calibration.collect import Stage, collect, find_stages, in_order, token_counts
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer
from onnxprune.model import Model

Seen = Moments | NDArray[np.int64]


def all_stages(dense: Model, layers: Sequence[Layer]) -> list[Stage]:
    """Return the stages of every site of the layers, so that none depends on a later one."""
    sites = max((len(layer.sites) for layer in layers), default=0)
    stages = [stage for site in range(sites) for stage in find_stages(dense, layers, site)]
    return list(in_order(dense, stages))


def walk(
    dense: Model,
    layers: Sequence[Layer],
    streams: Streams,
    masks: Sequence[NDArray[np.bool_] | None],
    *,
    seed: int,
    batches: Sequence[int] | None = None,
    guide: Guide = NOTHING,
) -> Iterator[tuple[Stage, Seen]]:
    """Yield each stage, the later uses of tied weights too, with the statistics of its inputs.

    The stream stands at the stage until the next one is asked for.

    Args:
        dense: the model.
        layers: whose inputs are looked at.
        streams: one stream (dense) over the calibration batches, not advanced yet.
        masks: per batch, which tokens are real.
        seed: of the choice of rows.
        batches: that statistics are made of; default all. How often a table's rows are read is of all.
        guide: which tokens and places count more than others.
    """
    chosen = range(streams.size) if batches is None else batches
    done: list[str] = []
    for stage in all_stages(dense, layers):
        streams.advance(stage.reads, done)
        done = list(stage.reads)
        if stage.layers[0].kind == "embedding":
            yield stage, token_counts(streams, stage, masks)
            continue
        name = stage.layers[0].name
        yield (
            stage,
            collect(
                streams,
                stage,
                masks,
                batches=chosen,
                seed=seed,
                tokens=guide.tokens.get(name),
                places=name in guide.places,
            ),
        )


def add_tied(tied: dict[str, Moments], stage: Stage, seen: Seen) -> None:
    """Add what a later use of a weight sees to ``tied``, by layer name; nothing for a first use."""
    if stage.site and isinstance(seen, Moments):
        for layer in stage.layers:
            tied[layer.name] = tied.get(layer.name, Moments.like(seen)) + seen
