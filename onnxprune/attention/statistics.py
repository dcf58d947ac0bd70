"""Statistics of attention blocks on calibration data: per token, per head, per block.

What is about heads and blocks are sums that add over batches (and over shards); what is about tokens stays
with its batch. Padding neither asks nor is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from glob import escape
from operator import add

import numpy as np
from numpy.typing import NDArray

from onnxprune.attention.block import AttentionBlock
from onnxprune.attention.fused import Probe
from onnxprune.calibration.cut import Cutter
from onnxprune.calibration.store import ArrayStore
from onnxprune.calibration.streams import DENSE, Batch, Streams
from onnxprune.errors import ModelError
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.solvers.layer import dense_matrix

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class BlockStatistics:
    """Sums over the real queries of one block; the properties are means.

    Attributes:
        queries: real queries seen.
        mass: (heads,) sum of the attention that does not go to the first real key.
        entropy: (heads,) sum of the entropies in nats.
        norm: (heads,) sum of ``||o||^2``, o the head's part of the context.
        effect: (heads,) sum of ``||W_O o||^2``, what the head alone adds to the block's output; zeros when
            the output projection is not known.
        output: sum of ``||y||^2``, y what the block adds to the residual stream; 0 when that is not known.
        residual: sum of ``||x||^2``, x what it is added to.
    """

    queries: float
    mass: Sums
    entropy: Sums
    norm: Sums
    effect: Sums
    output: float = 0.0
    residual: float = 0.0

    def __add__(self, other: BlockStatistics) -> BlockStatistics:
        """Merge two shards."""
        return BlockStatistics(
            self.queries + other.queries,
            self.mass + other.mass,
            self.entropy + other.entropy,
            self.norm + other.norm,
            self.effect + other.effect,
            self.output + other.output,
            self.residual + other.residual,
        )

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.mass)

    @property
    def head_mass(self) -> Sums:
        """(heads,) mean share of attention that does not go to the first key (the usual sink)."""
        return self.mass / max(self.queries, 1)

    @property
    def head_entropy(self) -> Sums:
        """(heads,) mean entropy in nats."""
        return self.entropy / max(self.queries, 1)

    @property
    def head_norm(self) -> Sums:
        """(heads,) root mean square norm of each head's part of the context."""
        return np.asarray(np.sqrt(self.norm / max(self.queries, 1)))

    @property
    def head_effect(self) -> Sums:
        """(heads,) root mean square norm of what each head adds to the block's output."""
        return np.asarray(np.sqrt(self.effect / max(self.queries, 1)))

    @property
    def contribution(self) -> float | None:
        """Norm of what the block adds, relative to the residual stream; None when that is not known."""
        return float(np.sqrt(self.output / self.residual)) if self.residual > 0 else None


@dataclass(frozen=True)
class Attention:
    """What the calibration data say of one block.

    Attributes:
        block: the block.
        sums: over all batches.
        received: per batch (samples, keys): mean attention that each token gets, over heads and real queries.
    """

    block: AttentionBlock
    sums: BlockStatistics
    received: tuple[Floats, ...] = field(repr=False)


def received(P: Floats, queries: Mask) -> Floats:
    """Return the attention that each key gets (samples, keys): the mean over heads and real queries.

    Args:
        P: (samples, heads, queries, keys) probabilities.
        queries: (samples, queries) True for real tokens.
    """
    weights = queries / np.maximum(queries.sum(1, keepdims=True), 1)
    return np.asarray(np.einsum("bhqk,bq->bk", P, weights, optimize=True) / P.shape[1], dtype=np.float32)


def head_sums(P: Floats, context: Floats, queries: Mask, keys: Mask, W: Floats | None) -> BlockStatistics:
    """Return the sums over one batch, without those of the residual stream.

    Args:
        P: (samples, heads, queries, keys) probabilities.
        context: (samples, heads, queries, size), P times the values.
        queries: (samples, queries) True for real tokens.
        keys: (samples, keys) likewise.
        W: (heads, size, features) output projection by heads, or None.
    """
    real = queries.astype(np.float64)
    first = np.argmax(keys, axis=1)
    sink = np.take_along_axis(P, first[:, None, None, None], axis=3)[..., 0]
    mass = np.where(keys[:, None, None, :], P, 0).sum(3) - sink
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(P > 0, P * np.log(P), 0).sum(3)
    norm = np.square(context, dtype=np.float64).sum(3)
    effect = np.zeros(P.shape[1])
    if W is not None:  # ||o W||^2 = o (W W^T) o^T
        gram = W @ W.swapaxes(1, 2)
        parts = (context @ gram) * context
        effect = np.einsum("bhqd,bq->h", parts.astype(np.float64), real)
    over = "bhq,bq->h"
    return BlockStatistics(
        float(real.sum()),
        np.einsum(over, mass, real),
        np.einsum(over, entropy, real),
        np.einsum(over, norm, real),
        effect,
    )


def by_heads(P: NDArray[np.generic], samples: int) -> Floats:
    """Return probabilities as (samples, heads, queries, keys); windows of an image count as heads."""
    return np.ascontiguousarray(P, dtype=np.float32).reshape(samples, -1, *P.shape[-2:])


def context_by_heads(context: NDArray[np.generic], block: AttentionBlock, P: Floats) -> Floats:
    """Return the context as (samples, heads, queries, size)."""
    samples, heads, queries, _ = P.shape
    layout = block.layout or ("heads first" if context.ndim == 4 else "merged")
    found = np.asarray(context, dtype=np.float32)
    if layout == "heads first":
        return found.reshape(samples, heads, queries, -1)
    if layout == "features first":
        return found.reshape(samples, heads, -1, queries).swapaxes(2, 3)
    return found.reshape(samples, queries, heads, -1).swapaxes(1, 2)


class Observer:
    """Reads one block from the dense stream.

    Args:
        model: the model.
        block: the block.
        masks: per batch, which tokens are real.
        constant: values that depend on weights only.
        output: (in_features, out_features) of the output projection, or None.
        threads: ONNX Runtime threads.
    """

    def __init__(
        self,
        model: Model,
        block: AttentionBlock,
        masks: Sequence[Mask | None],
        constant: set[str],
        output: Floats | None = None,
        threads: int | None = None,
    ) -> None:
        self.block, self.masks, self.output = block, masks, output
        self.probe = Probe(model, block, constant, threads) if block.fused else None
        self.reads = self.probe.reads if self.probe else (block.probabilities,)
        values = (*self.reads, block.context, block.output, block.residual)
        self.targets = [name for name in dict.fromkeys(values) if name]

    def probabilities(self, streams: Streams, number: int) -> Floats:
        """Return P of a batch (samples, heads, queries, keys)."""
        values = {name: streams.value(name, number, DENSE) for name in self.reads}
        P = self.probe.run(values) if self.probe else values[self.block.probabilities]
        return by_heads(P, streams.samples[number])

    def batch(self, streams: Streams, number: int) -> tuple[BlockStatistics, Floats]:
        """Return the sums and the received attention of one batch."""
        P, mask = self.probabilities(streams, number), self.masks[number]
        samples, heads, queries, keys = P.shape
        real_queries, real_keys = (_real(mask, (samples, size)) for size in (queries, keys))
        context = context_by_heads(streams.value(self.block.context, number, DENSE), self.block, P)
        size = context.shape[3]
        W = self.output
        W = W.reshape(heads, size, -1) if W is not None and len(W) == heads * size else None
        sums = head_sums(P, context, real_queries, real_keys, W)
        if self.block.output:
            values = (streams.value(n, number, DENSE) for n in (self.block.output, self.block.residual))
            added, stream = (_square(value, mask) for value in values)
            sums = replace(sums, output=added, residual=stream)
        return sums, received(P, real_queries)


def _square(value: NDArray[np.generic], mask: Mask | None) -> float:
    """Sum of the squares of a value, at real tokens where they can be told."""
    if mask is not None and value.shape[:2] == mask.shape:
        value = value[mask]
    return float(np.square(value, dtype=np.float64).sum())


def _real(mask: Mask | None, shape: tuple[int, int]) -> Mask:
    return mask if mask is not None and mask.shape == shape else np.ones(shape, dtype=bool)


def observe(
    model: Model,
    blocks: Sequence[AttentionBlock],
    batches: Sequence[Batch],
    masks: Sequence[Mask | None],
    store: ArrayStore,
    *,
    threads: int | None = None,
    batched: frozenset[str] | None = None,
    on_skip: Callable[[AttentionBlock, str], None] = lambda block, reason: None,
) -> tuple[Attention, ...]:
    """Return the statistics of every block that can be read: one forward pass in all.

    Args:
        model: the dense model.
        blocks: in graph order.
        batches: feeds of the graph inputs.
        masks: per batch, which tokens are real.
        store: where activations live.
        threads: ONNX Runtime threads.
        batched: graph inputs whose first axis is the batch; None means all that have axes.
        on_skip: told about a block that cannot be read, and why.
    """
    outputs = output_weights(model, blocks)
    constant = Cutter(model).constant
    observers = [
        Observer(model, b, masks, constant, outputs.get(b.weights.output or ""), threads) for b in blocks
    ]
    streams = Streams(
        model, None, batches, {t for o in observers for t in o.targets}, store, threads, batched
    )
    found: list[Attention] = []
    done: list[str] = []
    for number, observer in enumerate(observers):
        streams.advance(observer.targets, done)
        later = {target for other in observers[number + 1 :] for target in other.targets}
        done = [target for target in observer.targets if target not in later]
        try:
            parts = [observer.batch(streams, number) for number in range(streams.size)]
        except (ModelError, ValueError) as error:  # an operator that hides P, a context of another shape
            on_skip(observer.block, str(error))
            continue
        sums = reduce(add, [part for part, _ in parts])
        found.append(Attention(observer.block, sums, tuple(tokens for _, tokens in parts)))
    return tuple(found)


def output_weights(model: Model, blocks: Sequence[AttentionBlock]) -> dict[str, Floats]:
    """Return the output projections as (in_features, out_features), as far as they are layers."""
    names = {block.weights.output for block in blocks} - {None}
    if not names:
        return {}
    layers, _ = find_layers(model, include=[escape(name) for name in names if name], min_size=1)
    plain = [layer for layer in layers if layer.groups == 1 and layer.name in names]
    return {layer.name: dense_matrix(model, layer)[0].T for layer in plain}
