"""Sums that grow with the data, in whatever portions they come."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.batching import AUTO_BATCH_ROWS, batch_key, join, row_count
from onnxprune.calibration.collect import Stage, collect, find_stages, token_counts
from onnxprune.calibration.inputs import Feed, model_inputs
from onnxprune.calibration.mask import row_mask
from onnxprune.calibration.sources.stream import pieces
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import Streams
from onnxprune.errors import DataError, ModelError
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.online import statefile
from onnxprune.online.oneshot import Sums
from onnxprune.parallel import workers
from onnxprune.recipe import Recipe


class GrowingSums:
    """Sums over all samples that were ever fed, and the samples that wait for a batch to be full.

    They are the dense model's second moments of each layer's inputs, of embedding tables how often each row
    was read.

    Args:
        model: folded as pruning folds it.
        layers: what is pruned of it.
        recipe: settings; ``seed``, ``threads`` and ``max_memory`` are used.

    Attributes:
        samples: how many were fed so far.
        stages: layers that read the same values; their order is that of the sums.
    """

    def __init__(self, model: Model, layers: Sequence[Layer], recipe: Recipe) -> None:
        self.model, self.layers, self.recipe = model, layers, recipe
        self._inputs = model_inputs(model)
        sites = max(len(layer.sites) for layer in layers)
        self.stages = tuple(stage for site in range(sites) for stage in find_stages(model, layers, site))
        self.samples = self._batches = 0
        self._sums: list[Sums] = [self._empty(stage) for stage in self.stages]
        self._waiting: dict[tuple[object, ...], list[Feed]] = {}
        self._sessions: dict[object, Any] = {}

    def feed(self, data: Mapping[str, Any] | NDArray[Any] | Iterable[Any]) -> int:
        """Add samples; see :meth:`onnxprune.online.pruner.Pruner.feed`."""
        single = isinstance(data, Mapping | np.ndarray)
        feeds: Iterable[Any] = [data] if single else data
        full = self._inputs.fixed or AUTO_BATCH_ROWS
        for piece in pieces(feeds, self._inputs, "data"):
            count = row_count(piece, self._inputs)
            own = {name: np.array(array) for name, array in piece.items()}  # a view keeps its whole batch
            waiting = self._waiting.setdefault(batch_key(own, self._inputs, {}), [])
            waiting.append(own)
            self.samples += count
            if not self._inputs.batched or len(waiting) * count >= full:
                batch = join(waiting, self._inputs, {}) if len(waiting) > 1 else own
                try:
                    self._add_all(batch)
                except ModelError:
                    self.samples -= sum(row_count(one, self._inputs) for one in waiting)
                    raise
                finally:
                    waiting.clear()
        return self.samples

    def total(self) -> list[Sums]:
        """Return the sums with the samples that wait; the same object each time when none does.

        Raises:
            DataError: when nothing was fed.
            ModelError: when activations are not finite.
        """
        if not self.samples:
            raise DataError("nothing was fed, so there is nothing to prune from", "call feed first")
        waiting = [group for group in self._waiting.values() if group]
        if not waiting or (self._inputs.fixed and self._batches):
            return self._sums
        sums = copy.deepcopy(self._sums)
        for number, group in enumerate(waiting):
            self._add(sums, join(group, self._inputs, {}), self._batches + number)
        return sums

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return the sums and what waits as arrays by name."""
        state = {
            "model": np.array(self._digest()),
            "samples": np.array(self.samples),
            "batches": np.array(self._batches),
        }
        for number, sums in enumerate(self._sums):
            state |= statefile.put(f"sums.{number}.", sums)
        groups = [group for group in self._waiting.values() if group]
        for number, group in enumerate(groups):
            joined = join(group, self._inputs, {})
            state |= {f"waiting.{number}.{name}": statefile.plain(array) for name, array in joined.items()}
        return state

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what :meth:`state_dict` returned, in place of what was learnt here.

        Raises:
            DataError: when it is of another model or other layers, or not complete.
        """
        if str(state.get("model", "")) != self._digest():
            raise DataError(
                f"the state is not one of {self.model.name} with these layers",
                "a Pruner of the same model, --include, --exclude and --min-size reads it",
            )
        try:
            sums = [
                statefile.take(state, f"sums.{number}.", self._empty(stage))
                for number, stage in enumerate(self.stages)
            ]
            samples, batches = int(state["samples"]), int(state["batches"])
        except (KeyError, ValueError) as error:
            raise DataError(f"the state of {self.model.name} is damaged: {error}") from error
        self._sums, self.samples, self._batches = sums, samples, batches
        self._waiting = {}
        for feed in statefile.groups(state, "waiting."):
            rows = pieces([feed], self._inputs, "state")
            found = [{name: np.array(array) for name, array in row.items()} for row in rows]
            self._waiting[batch_key(found[0], self._inputs, {})] = found

    def _digest(self) -> str:
        return statefile.digest(self.model, self.layers)

    def _empty(self, stage: Stage) -> Sums:
        layer = stage.layers[0]
        groups, _, features = layer.view.matrix
        if layer.kind == "embedding":
            return np.zeros(layer.view.stored[0], dtype=np.int64)
        return Moments.zeros(groups, features)

    def _add_all(self, batch: Feed) -> None:
        """Add a batch to the sums of all stages, or to none: one that overflows must not spoil the others."""
        before = copy.deepcopy(self._sums)
        try:
            self._add(self._sums, batch, self._batches)
        except ModelError:
            self._sums = before
            raise
        self._batches += 1

    def _add(self, sums: list[Sums], batch: Feed, number: int) -> None:
        """Add a batch, in place."""
        values = {name for stage in self.stages for name in stage.reads}
        masks = [row_mask(batch)]
        with ArrayStore(int(self.recipe.max_memory * 2**30)) as store, workers(self.recipe.threads):
            streams = _Streams(self, batch, values, store)
            streams.advance(sorted(values))
            for place, stage in enumerate(self.stages):
                found = sums[place]
                if isinstance(found, Moments):
                    seed = self.recipe.seed + number
                    collect(streams, stage, masks, batches=[0], seed=seed, into=found)
                else:
                    found += token_counts(streams, stage, masks)


class _Streams(Streams):
    """The dense stream over one batch; its session is the same for every batch."""

    def __init__(self, owner: GrowingSums, batch: Feed, values: Iterable[str], store: ArrayStore) -> None:
        recipe, batched = owner.recipe, owner._inputs.batched
        self._sessions = owner._sessions
        super().__init__(owner.model, None, [batch], values, store, recipe.threads, batched)

    def _session(self, *asked: Any) -> Any:
        """Return the session of the segment that computes all values: there is only one."""
        if not self._sessions:
            self._sessions["all"] = super()._session(*asked)
        return self._sessions["all"]
