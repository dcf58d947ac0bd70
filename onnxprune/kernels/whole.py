"""Choose among rewritten models by running them whole: neighbours, layouts and caches count there."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxprune.kernels.cache import Cache
from onnxprune.kernels.nodes import HOPELESS, Gain, Sessions
from onnxprune.kernels.stopwatch import best_times
from onnxprune.model import Model
from onnxprune.passes.chains import Chain
from onnxprune.passes.shapes import Shapes
from onnxprune.passes.sparse_ops import rewrite

ENOUGH = 1.05  # times faster that an op must be alone
_CLEAR = 1.5  # the same for a choice of those that gain most
_ROUNDS = 40
_SECONDS = 1.5  # for the turns of the last choices at one number of threads, on one feed
_SCOUTING = 0.7  # the same for all choices at first
_FINALISTS = 3  # choices that are measured more closely
_WORTH = 1.02  # times faster that the whole model must be
_BETTER = 1.01  # a smaller set of ops must gain this much
_NEAR = 0.9  # of the best choice, from which another one stays in the race
_REGIONS = 3
_SHARE = 4  # one of so many ops is tried without


class Whole:
    """Rewrites and measures a model with different choices of ops.

    Args:
        model: packed.
        dense: the same with plain weights: what ``model`` runs as without kernels, but quicker to load.
        shapes: of their values.
        feeds: groups of runs; each group is timed alone, the worst one counts.
        threads: numbers of threads.
        sessions: makes sessions.
        cache: what was measured before.

    Attributes:
        failure: why the first choice that cannot run cannot; empty while all can.
    """

    def __init__(
        self,
        model: Model,
        dense: Model,
        shapes: Shapes,
        feeds: Sequence[Mapping[str, Any]],
        threads: Sequence[int],
        sessions: Sessions,
        cache: Cache,
    ) -> None:
        self.model, self.dense, self.shapes = model, dense, shapes
        self.feeds, self.threads = feeds, threads
        self.sessions, self.cache = sessions, cache
        state = hashlib.sha256(model.proto.SerializeToString(deterministic=True))
        state.update(repr([{n: (a.shape, str(a.dtype)) for n, a in f.items()} for f in feeds]).encode())
        self.digest = state.hexdigest()[:32]
        self.failure = ""

    def best(self, gains: Sequence[Gain]) -> tuple[list[Chain], list[float]]:
        """Return the choice of ops with which the model is fastest, and its ratios per number of threads.

        A ratio is time without over time with ops, above 1 is faster. Without any op both are empty.
        """
        choices = _choices(gains, self._area)
        ratios = self.ratios(choices)
        best = max(range(len(choices)), key=lambda i: min(ratios[i]), default=None)
        if best is None:
            return [], []
        chosen, ratio = choices[best], ratios[best]
        for smaller in _without_least(chosen, gains):
            (again,) = self.ratios([smaller])
            if min(again) < _BETTER * min(ratio):
                break
            chosen, ratio = smaller, again
        if min(ratio) < _WORTH:
            return [], []
        return list(chosen), ratio

    def ratios(self, choices: Sequence[Sequence[Chain]]) -> list[list[float]]:
        """Return for each choice of ops its ratio at each number of threads."""
        keys = [self._key(chosen) for chosen in choices]
        known = [self.cache.get(key) for key in keys]
        new = [i for i, ratios in enumerate(known) if len(ratios or []) != len(self.threads)]
        if new:
            models = []
            for i in new:
                rewritten = self.model.copy()
                rewrite(rewritten, choices[i], self.shapes)
                models.append(rewritten)
            for i, ratios in zip(new, self._measure(models), strict=True):
                self.cache.put(keys[i], ratios)
        return [self.cache.get(key) or [] for key in keys]

    def _session(self, model: Model, threads: int) -> Any:
        """Return a session with kernels, None when it fails on one of the feeds."""
        try:
            session = self.sessions(model, threads, True)
            for feed in self.feeds:
                session.run(None, feed)
        except Exception as error:  # ORT raises many classes, all private; here each means "not this choice"
            self.failure = self.failure or " ".join(str(error).split())[:300]
            return None
        return session

    def _area(self, chain: Chain) -> int:
        """Positions of the image that a convolution reads."""
        return math.prod(self.shapes.seen[0].get(chain.product.x, (0, 0))[2:]) if self.shapes.seen else 0

    def _key(self, chosen: Sequence[Chain]) -> str:
        ops = hashlib.sha256(repr([(c.op_type, c.output) for c in chosen]).encode()).hexdigest()[:32]
        return f"model={self.digest} ops={ops} threads={','.join(map(str, self.threads))}"

    def _measure(self, models: Sequence[Model]) -> list[list[float]]:
        """Return the ratios of each; what is out of the race gets 0 where it is not measured."""
        found: list[list[float]] = [[] for _ in models]
        running = list(range(len(models)))
        if len(running) > _FINALISTS:
            scouted = self._race(models, running, self.threads[0], _SCOUTING)
            running = sorted(running, key=lambda i: -scouted[i])[:_FINALISTS]
        for count in self.threads:
            ratios = self._race(models, running, count, _SECONDS)
            for entry, ratio in zip(found, ratios, strict=True):
                entry.append(ratio)
            running = [i for i in running if ratios[i] >= _NEAR * max(ratios) > 0]
        return found

    def _race(
        self, models: Sequence[Model], running: Sequence[int], count: int, seconds: float
    ) -> list[float]:
        """Return the ratio of each of ``running`` on the feed where it gains least, 0 for the others."""
        ready = {i: self._session(models[i], count) for i in running}
        running = [i for i in running if ready[i] is not None]
        ratios = [0.0] * len(models)
        for i in running:
            ratios[i] = float("inf")
        sessions = [self.sessions(self.dense, count, False), *(ready[i] for i in running)]
        for feed in self.feeds if running else ():
            reference, *times = best_times(sessions, [feed], count, seconds=seconds, rounds=_ROUNDS)
            for i, time in zip(running, times, strict=True):
                ratios[i] = min(ratios[i], reference / max(time, 1e-9))
        return ratios


def _choices(gains: Sequence[Gain], area: Callable[[Chain], int]) -> list[list[Chain]]:
    """Sets of ops worth trying.

    Alone, a convolution is slower than among its like, since ONNX Runtime brings its input into another
    layout and back. So what a set of convolutions gains is not the sum of its members' gains: when all of
    a model are ours, no layout changes are left. In between lie the sets of all convolutions on large
    images, or on small ones: there the layout changes once.
    """
    sparse = [g for g in gains if g.chain.product.sparse]
    direct = [g for g in gains if not g.chain.product.sparse]
    sets = [[g for g in sparse if g.ratio > ENOUGH]]
    if _has_convolutions(gains):
        winners = sets[0]
        usable = [g for g in gains if g.ratio > HOPELESS]
        sets += [
            [g for g in winners if g.chain.product.op.consumer != "Conv"],
            [g for g in sparse if g.ratio > _CLEAR],
            [g for g in gains if g.ratio > ENOUGH],
            [*winners, *(g for g in direct if g.ratio > HOPELESS)],
            [g for g in usable if g.chain.product.op.consumer == "Conv" or g.ratio > ENOUGH],
        ]
        for limit in _limits([area(g.chain) for g in usable if g.chain.product.op.consumer == "Conv"]):
            sets += [
                [g for g in usable if _in_region(g, area(g.chain) >= limit)],
                [g for g in usable if _in_region(g, area(g.chain) < limit)],
            ]
    choices: dict[tuple[str, ...], list[Chain]] = {}
    for members in sets:
        names = {g.chain.output for g in members}
        ordered = [g.chain for g in gains if g.chain.output in names]  # graph order
        if ordered:
            choices.setdefault(tuple(sorted(names)), ordered)
    return list(choices.values())


def _in_region(gain: Gain, inside: bool) -> bool:
    return inside if gain.chain.product.op.consumer == "Conv" else gain.ratio > ENOUGH


def _limits(areas: Sequence[int]) -> list[int]:
    """Return up to :data:`_REGIONS` sizes that part the images into large and small ones."""
    sizes = sorted(set(areas))[1:]
    step = max(1, math.ceil(len(sizes) / _REGIONS))
    return sizes[step // 2 :: step]


def _has_convolutions(gains: Sequence[Gain]) -> bool:
    return any(g.chain.product.op.consumer == "Conv" for g in gains)


def _without_least(chosen: Sequence[Chain], gains: Sequence[Gain]) -> list[list[Chain]]:
    """Two smaller choices: the quarter of the convolutions that gains least left out, once and twice."""
    ratio = {g.chain.output: g.ratio for g in gains}
    smaller, found = list(chosen), []
    for _ in range(2):
        # What a matrix product gains does not depend on the others.
        ranked = [c for c in smaller if c.product.op.consumer == "Conv"]
        ranked.sort(key=lambda c: (ratio[c.output], c.output))
        least = {c.output for c in ranked[: len(ranked) // _SHARE] if ratio[c.output] < _CLEAR}
        smaller = [c for c in smaller if c.output not in least]
        if not least or not smaller:
            break
        found.append(smaller)
    return found
