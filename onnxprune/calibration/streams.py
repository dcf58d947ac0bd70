"""Carry the activations of the dense and of the pruned model through the graph, side by side.

The graph is cut at the inputs of the layers. Each node runs once per stream, however many layers
there are; only the values that later nodes read are kept, in memory or on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import runtime
from onnxprune.calibration.batching import ONE_BY_ONE
from onnxprune.calibration.cut import Cutter, Segment
from onnxprune.calibration.store import ArrayStore
from onnxprune.errors import ModelError
from onnxprune.inmemory import is_large
from onnxprune.model import Model
from onnxprune.parallel import available, map_threads

Batch = dict[str, NDArray[np.generic]]
DENSE, PRUNED = 0, 1
# Between two runs the solvers work: threads spinning for ONNX Runtime's next run would be in their way.
QUIET = {"session.intra_op.allow_spinning": "0"}


class Streams:
    """Two activation streams over the same batches.

    Args:
        dense: the model as it came.
        pruned: a copy of it whose weights change while the streams advance, or None for one stream.
        batches: feeds of the graph inputs.
        targets: every value that will ever be asked for, so that what nobody needs can be dropped.
        store: where activations live.
        threads: ONNX Runtime threads.
        batched: graph inputs whose first axis is the batch; None means all that have axes.
    """

    def __init__(
        self,
        dense: Model,
        pruned: Model | None,
        batches: Sequence[Batch],
        targets: Iterable[str],
        store: ArrayStore,
        threads: int | None = None,
        batched: frozenset[str] | None = None,
    ) -> None:
        self.models = [dense] if pruned is None else [dense, pruned]
        self.cutter = Cutter(dense)
        self.threads = threads
        self.store = store
        self.size = len(batches)
        self.samples = [sample_count(batch, batched) for batch in batches]
        self._pending = set(targets)
        self._known: set[str] = set()
        self._types: dict[str, np.dtype[np.generic]] = {}
        # Values that differ between the streams; everything else is computed and kept once.
        self._split: set[str] = set()
        self._changed: set[str] = set()
        # Weights that sessions were given, each read when the first segment needs it, not before:
        # finetune/blocks.py trains the weights of the pruned model in place.
        self._arrays: list[dict[str, NDArray[np.generic]]] = [{}, {}]
        self._large = {t.name for t in dense.graph.initializer if is_large(t)}
        for number, batch in enumerate(batches):
            for name, array in batch.items():
                store.put((DENSE, number, name), array)
                self._types[name] = array.dtype
                self._known.add(name)

    def weights_changed(self, names: Iterable[str]) -> None:
        """Say that these weights of the pruned model now differ from the dense ones."""
        for name in names:
            self._changed.add(name)
            self._arrays[PRUNED].pop(name, None)

    def changed(self, name: str) -> bool:
        """True when weight ``name`` of the pruned model was said to differ from the dense one."""
        return name in self._changed

    def advance(self, targets: Sequence[str], done: Iterable[str] = ()) -> None:
        """Compute ``targets`` in both streams; ``done`` are targets nobody will ask for again."""
        self._pending.difference_update(done)
        missing = [name for name in targets if name not in self._known]
        segment = self.cutter.segment(missing, self._known)
        made = {o for position in segment.nodes for o in self.cutter.nodes[position].output if o}
        produced = made - self.cutter.constant
        later = self._later_reads(self._known | produced)
        if missing:
            outputs = sorted(produced & later | set(missing))
            self._run(segment, outputs)
            self._known.update(outputs)
        self._drop(later | set(targets))
        for held in self._arrays:  # weights that no session will ask for again
            for name in held.keys() - later:
                del held[name]

    def tail(self, outputs: Sequence[str], free: Iterable[str], threads: int | None) -> tuple[Segment, Any]:
        """Return the rest of the dense graph up to ``outputs``, with the weights ``free`` as inputs.

        Returns:
            The segment and its session.
        """
        names = set(free)
        segment = self.cutter.segment(outputs, self._known | names)
        types = dict(self._types)
        types.update({name: self.models[DENSE].array(name).dtype for name in names})
        read = {name for position in segment.nodes for name in self.cutter.reads[position]}
        inputs = set(segment.inputs) | names & read
        segment = Segment(
            segment.nodes, tuple(sorted(inputs)), tuple(w for w in segment.weights if w not in names)
        )
        return segment, self._session(segment, types, outputs, DENSE, threads)

    def _session(
        self,
        segment: Segment,
        types: dict[str, np.dtype[np.generic]],
        outputs: Sequence[str],
        stream: int,
        threads: int | None,
    ) -> Any:
        model = self.models[stream]
        proto = self.cutter.proto(segment, types, outputs, model, outside=self._large)
        weights = {name: self._array(stream, name) for name in segment.weights if name in self._large}
        name = f"part of {model.name}"
        return runtime.session(proto, threads=threads, config=QUIET, weights=weights, name=name)

    def _array(self, stream: int, name: str) -> NDArray[np.generic]:
        """Return a weight; the same memory for every session that reads it."""
        held = self._arrays[stream if name in self._changed else DENSE]
        if name not in held:
            held[name] = self.models[stream].array(name)
        return held[name]

    def _later_reads(self, known: set[str]) -> set[str]:
        """Return the values that will be read from here on, given the values ``known``."""
        nodes = self.cutter.ancestors(self._pending, known)
        return {name for position in nodes for name in self.cutter.reads[position]} | self._pending

    def _run(self, segment: Segment, outputs: list[str]) -> None:
        differs = bool(self._split & set(segment.inputs)) or self._uses_changed(segment)
        differs = differs and len(self.models) == 2
        streams = (DENSE, PRUNED) if differs else (DENSE,)
        threads = session_threads(self.size, self.threads)
        sessions = map_threads(
            lambda stream: self._session(segment, self._types, outputs, stream, threads), streams
        )
        for stream in streams:
            session = sessions.pop(0)  # what the other one holds is freed before this one runs

            def one(number: int, session: Any = session, stream: int = stream) -> None:
                feeds = {name: self.value(name, number, stream) for name in segment.inputs}
                for name, array in zip(outputs, run(session, outputs, feeds), strict=True):
                    self._types[name] = array.dtype
                    self.store.put((stream, number, name), array)

            map_threads(one, range(self.size))
        if differs:
            self._split.update(outputs)

    def _uses_changed(self, segment: Segment) -> bool:
        constants = {o for position in segment.nodes for o in self.cutter.nodes[position].output}
        return bool(self._changed & (set(segment.weights) | constants))

    def _drop(self, needed: set[str]) -> None:
        for name in self._known - needed:
            for number in range(self.size):
                self.store.drop((DENSE, number, name))
                self.store.drop((PRUNED, number, name))
        self._known &= needed

    def value(self, name: str, number: int, stream: int) -> NDArray[np.generic]:
        """Return value ``name`` of batch ``number`` in a stream (DENSE or PRUNED)."""
        if stream == PRUNED and name not in self._split:
            stream = DENSE
        return self.store.get((stream, number, name))

    def differs(self, name: str) -> bool:
        """True when value ``name`` is not the same in both streams."""
        return name in self._split

    def pairs(self, name: str) -> Iterator[tuple[NDArray[np.generic], NDArray[np.generic]]]:
        """Yield (dense, pruned) arrays of value ``name``, batch by batch."""
        for number in range(self.size):
            dense = self.value(name, number, DENSE)
            yield dense, (dense if name not in self._split else self.value(name, number, PRUNED))


def sample_count(batch: Batch, batched: frozenset[str] | None) -> int:
    """Return how many samples a batch holds; ``batched`` as in :class:`Streams`."""
    counted = [a for name, a in batch.items() if a.ndim and (batched is None or name in batched)]
    return max((len(a) for a in counted), default=1)


def session_threads(batches: int, threads: int | None) -> int | None:
    """Return the threads of a session that runs ``batches`` batches with :func:`map_threads`.

    Whole batches side by side keep every processor busy; the pieces of one operator wait for each other.
    """
    return 1 if batches >= available() > 1 else threads


def run(session: Any, outputs: list[str], feeds: Batch) -> list[NDArray[np.generic]]:
    """Run a session and turn its failures and non-tensor outputs into a ModelError."""
    try:
        results: list[Any] = session.run(outputs, feeds)
    except Exception as error:  # ORT raises many private classes; each means that the model cannot run
        raise ModelError(
            f"ONNX Runtime cannot run the model on the given data: {error}",
            ONE_BY_ONE,
        ) from error
    for name, value in zip(outputs, results, strict=True):
        if not isinstance(value, np.ndarray):
            raise ModelError(
                f"value {name!r} is a {type(value).__name__}, not a tensor; the graph cannot be cut there"
            )
    return results
