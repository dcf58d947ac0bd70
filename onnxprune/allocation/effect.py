"""How far the model's output moves when one layer is changed.

Only the rest of the graph runs, from the layer's input on, with the layer's weight as an input: one session
serves every candidate of every layer there. It runs beside the work on the layers that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.answers import output_kinds
from onnxprune.calibration.collect import Stage
from onnxprune.calibration.streams import DENSE, Streams, run, session_threads
from onnxprune.divergence import total_divergence
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.outputs import OutputKind
from onnxprune.parallel import available, map_threads, workers
from onnxprune.solvers.layer import Solution

MAX_REFERENCE = 2**28  # bytes of outputs that the layers are compared with: maps of many classes are large
MAX_HELD = 2**27  # bytes of activations that may outlive their place in the streams


class Effects:
    """Measures layers in graph order. Use it as a context manager; ``found`` is complete after it.

    Args:
        dense: the model.
        streams: one stream over the calibration batches.
        masks: per batch, which tokens are real.
        probes: batches that the outputs are compared on.
        on_layer: called after each layer, in the caller's thread.

    Attributes:
        found: layer name -> divergence of the model's output for each of its candidates (mean per row).
    """

    def __init__(
        self,
        dense: Model,
        streams: Streams,
        masks: Sequence[NDArray[np.bool_] | None],
        probes: Sequence[int],
        on_layer: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.dense, self.streams, self.masks, self.probes = dense, streams, masks, probes
        self.on_layer = on_layer
        self.found: dict[str, tuple[float, ...]] = {}
        # Here: in other threads there are no workers
        self._threads, self._workers = session_threads(len(probes), streams.threads), available()
        self._reference: list[list[Any]] = []
        self._kinds: list[OutputKind] = []
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[dict[str, tuple[float, ...]]] | None = None
        self._stopped = Event()

    def __enter__(self) -> Effects:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._settle()
        finally:
            self._stopped.set()  # a caller that failed waits for one run of the model at most
            self._thread.shutdown(cancel_futures=True)

    def rest_of(self, stage: Stage) -> Future[Rest]:
        """Start to make the session of the rest of the graph, which takes one thread."""
        return self._thread.submit(Rest, self.dense, self.streams, stage, self._threads)

    def measure(
        self,
        making: Future[Rest] | None,
        layers: Sequence[Layer],
        candidates: Mapping[str, Sequence[Solution]],
    ) -> None:
        """Start to measure the candidates of some layers; what was started before is finished first.

        Args:
            making: what :meth:`rest_of` said, before the streams advance; None measures nothing.
            layers: of the stage.
            candidates: layer name -> what to try.
        """
        self._settle()
        if making is None:
            self._done({layer.name: () for layer in layers})
            return
        rest = making.result()
        if not self._reference:
            self._take_reference(rest)
        held = rest.hold(self.probes[: len(self._reference)], MAX_HELD)  # before anybody reads them
        self._running = self._thread.submit(self._measure, rest, layers, candidates)
        if not held:
            self._settle()

    def _settle(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            self._done(running.result())

    def _done(self, found: dict[str, tuple[float, ...]]) -> None:
        self.found.update(found)
        for name in found:
            self.on_layer(name)

    def _take_reference(self, rest: Rest) -> None:
        """Run the dense model on as many of the probes as :data:`MAX_REFERENCE` has room for outputs of."""
        held = 0
        for number in self.probes:
            self._reference.append(rest.run(number, {}))
            held += sum(output.nbytes for output in self._reference[-1])
            if held > MAX_REFERENCE:
                break
        named = [dict(zip(self.dense.index.outputs, values, strict=True)) for values in self._reference]
        masks = [self.masks[number] for number in self.probes[: len(named)]]
        more = zip(named[1:], masks[1:], strict=True)
        self._kinds = list(output_kinds(named[0], self.dense, mask=masks[0], more=more).values())

    def _measure(
        self, rest: Rest, layers: Sequence[Layer], candidates: Mapping[str, Sequence[Solution]]
    ) -> dict[str, tuple[float, ...]]:
        with workers(self._workers):
            return {
                layer.name: tuple(
                    self._divergence(rest, solution.arrays(self.dense, layer))
                    for solution in candidates[layer.name]
                )
                for layer in layers
            }

    def _divergence(self, rest: Rest, changed: Mapping[str, NDArray[np.generic]]) -> float:
        def moved(place: int) -> tuple[float, int]:
            """Return how far the outputs of one batch are, and its rows; the outputs are not kept."""
            if self._stopped.is_set():
                raise CancelledError
            number, outputs = self.probes[place], self._reference[place]
            distance = total_divergence(self._kinds, outputs, rest.run(number, changed), self.masks[number])
            return distance, len(outputs[0]) if outputs[0].ndim else 1

        found = map_threads(moved, range(len(self._reference)))
        return sum(distance for distance, _ in found) / max(sum(rows for _, rows in found), 1)


class Rest:
    """The graph from one stage to the outputs, with the weights and biases of its layers as inputs."""

    def __init__(self, dense: Model, streams: Streams, stage: Stage, threads: int | None) -> None:
        names = [layer.name for layer in stage.layers]
        names += [layer.bias.name for layer in stage.layers if layer.bias]
        self.dense, self.streams = dense, streams
        self.values = {name: dense.array(name) for name in names}
        segment, self.session = streams.tail(list(dense.index.outputs), names, threads)
        self.inputs = [name for name in segment.inputs if name not in self.values]
        self.read = set(names) & set(segment.inputs)
        self._held: dict[int, dict[str, NDArray[np.generic]]] = {}

    def hold(self, batches: Sequence[int], limit: int) -> bool:
        """Take inputs out of the streams, so that these may advance; False when over ``limit`` bytes."""
        taken = 0
        for number in batches:
            values = self._values(number)
            taken += sum(value.nbytes for value in values.values())
            if taken > limit:
                self._held.clear()
                return False
            self._held[number] = values
        return True

    def _values(self, number: int) -> dict[str, NDArray[np.generic]]:
        if number in self._held:
            return self._held[number]
        return {name: self.streams.value(name, number, DENSE) for name in self.inputs}

    def run(self, number: int, changed: Mapping[str, NDArray[np.generic]]) -> list[Any]:
        """Return the model's outputs on batch ``number`` with some of the constants replaced."""
        feeds = dict(self._values(number))
        feeds.update({name: changed.get(name, self.values[name]) for name in self.read})
        return list(run(self.session, list(self.dense.index.outputs), feeds))
