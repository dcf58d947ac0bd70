"""Measure single chains: an op with a kernel against the nodes it would replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.kernels.cache import Cache
from onnxprune.kernels.stopwatch import best_times
from onnxprune.kernels.weights import Profile
from onnxprune.model import Model
from onnxprune.passes.chains import Chain
from onnxprune.passes.cutout import cut_out
from onnxprune.passes.shapes import Shapes
from onnxprune.passes.sparse_ops import find_chains, rewrite

# (model, threads, with the library) -> session
Sessions = Callable[[Model, int, bool], Any]
# A kernel that is further off than this (relative to the largest output) is not used.
TOLERANCE = 1e-5
_SECONDS = 0.25  # for the turns of one chain at one number of threads
HOPELESS = 0.6  # below this no set of ops is worth trying with it
WRONG = -1.0  # stands for the gain of an op that no kernel takes, or whose kernel fails or is off


@dataclass(frozen=True)
class Gain:
    """What was measured of one product.

    Attributes:
        chain: the best way to replace it.
        ratio: time of the nodes over time of the op, the lowest over the numbers of threads;
            :data:`WRONG` when it cannot be used.
    """

    chain: Chain
    ratio: float


def measure(
    model: Model,
    options: Sequence[Chain],
    weight: Profile,
    shapes: Shapes,
    threads: Sequence[int],
    sessions: Sessions,
    cache: Cache,
) -> Gain:
    """Time every way to replace one product, and return the best.

    Args:
        model: packed.
        options: chains of one product, shortest first.
        weight: of the product.
        shapes: with the sizes of one run.
        threads: numbers of threads to measure; the worst one counts.
        sessions: makes sessions.
        cache: what was measured before.
    """
    key = _key(options, weight, shapes)
    ratios = cache.get(f"{key} threads={','.join(map(str, threads))}")
    if ratios is None or len(ratios) != len(options):
        ratios = cache.put(
            f"{key} threads={','.join(map(str, threads))}",
            _measure(model, options, shapes, threads, sessions),
        )
    best = max(range(len(options)), key=lambda i: ratios[i])
    return Gain(options[best], ratios[best])


def _key(options: Sequence[Chain], weight: Profile, shapes: Shapes) -> str:
    product, seen = options[-1].product, shapes.seen[0]
    numbers = [
        f"{a.name}={list(a.ints) or a.i}"
        for a in product.attributes
        if a.name in ("strides", "pads", "dilations", "group", "transB")
    ]
    return " ".join(
        [
            # The storage form decides how fast the weight loads, not how fast the kernel is.
            *(f"{product.sparse:d}{product.op.consumer}{c.epilogue.suffix}" for c in options),
            f"weight={list(product.shape)}",
            f"input={list(seen[product.x])}",
            f"density={weight.rounded:.2f}",
            f"group={weight.group}",
            f"pads={len(product.absorbed)}",  # nodes of their own that the op replaces
            *numbers,
        ]
    )


def _measure(
    model: Model, options: Sequence[Chain], shapes: Shapes, threads: Sequence[int], sessions: Sessions
) -> list[float]:
    seen = shapes.seen[0]
    longest = options[-1]
    small = cut_out(model, longest, seen)
    found, _ = find_chains(small, shapes)
    ways = {chain.op_type: chain for chain in found[0]} if len(found) == 1 else {}
    variants: list[Model | None] = []
    for chain in options:
        variant = small.copy()
        if chain.op_type in ways:
            rewrite(variant, [ways[chain.op_type]], shapes)
        variants.append(variant if chain.op_type in ways else None)
    feed = _feed(small, seen)
    lowest = [np.inf] * len(options)
    for count in threads:
        for i, ratio in enumerate(_ratios(small, variants, feed, count, sessions)):
            lowest[i] = min(lowest[i], ratio)
        if max(lowest) < HOPELESS:
            break
    return [float(ratio) for ratio in lowest]


def _feed(small: Model, seen: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(seen[name], np.float32) for name in small.index.inputs}


def _ratios(
    small: Model, variants: Sequence[Model | None], feed: Mapping[str, Any], threads: int, sessions: Sessions
) -> list[float]:
    """Return time of the dense nodes over time of each variant; WRONG where it cannot be used."""
    dense = sessions(small, threads, False)
    wanted = dense.run(None, feed)[0]
    limit = TOLERANCE * max(float(np.abs(wanted).max(initial=0)), 1e-6)
    ready = []
    for variant in variants:
        session = None
        if variant is not None:
            try:
                session = sessions(variant, threads, True)
                output = session.run(None, feed)[0]
            except Exception:  # ORT raises many classes, all private; the report says that it cannot be used
                session = None
            else:
                if output.shape != wanted.shape or not (np.abs(output - wanted) <= limit).all():
                    session = None
        ready.append(session)
    running = [session for session in ready if session is not None]
    times = best_times([dense, *running], [feed], threads, seconds=_SECONDS)
    rest = iter(times[1:])
    return [WRONG if session is None else times[0] / max(next(rest), 1e-9) for session in ready]
