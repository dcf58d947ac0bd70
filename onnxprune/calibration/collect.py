"""Collect the statistics of the layers that share one input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.mask import apply_row_mask
from onnxprune.calibration.recurrent import activation, differs, token_mask, tokens_of
from onnxprune.calibration.rows import input_rows, output_rows, output_shape, row_count
from onnxprune.calibration.spread import Spread
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import DENSE, PRUNED, Streams
from onnxprune.errors import DataError, ModelError
from onnxprune.layers import Layer
from onnxprune.layers.layer import RECURRENT
from onnxprune.model import Model
from onnxprune.parallel import available, batched, map_threads, multiply

# Rows per input feature that the second moments are estimated from, and rows at least. A map of 112 x 112
# pixels would give millions; four times as many rows left EfficientNet-Lite0's top-1 where it was.
ROWS_PER_FEATURE = 64
MIN_ROWS = 4096
SIDE_BY_SIDE = 2**25  # bytes of an activation up to which several batches are taken apart at once
MAX_SHARDS = 2**23  # elements of the sums of all threads together
MIN_PRODUCT = 1024  # rows that are collected before they are multiplied
NARROW = 2  # products at the outputs: one for the difference, one with the inputs

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """Layers whose matrices multiply the same rows, so that they share one Hessian.

    Attributes:
        value: the activation they read.
        layers: in graph order.
        site: which of the layers' sites this is (tied weights have several).
    """

    value: str
    layers: tuple[Layer, ...]
    site: int = 0

    @property
    def reads(self) -> tuple[str, ...]:
        """The values that :func:`collect` looks at: :attr:`value`, and what else says what the rows are."""
        return self.layers[0].sites[self.site].reads


def find_stages(model: Model, layers: Iterable[Layer], site: int = 0) -> tuple[Stage, ...]:
    """Group layers by the rows they read, ordered so that a stage never depends on a later one."""
    found: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        if len(layer.sites) > site:
            window = layer.window if layer.kind == "conv" else None
            value = layer.sites[site].input
            batch = layer.view.stored[:-2] if layer.kind == "matmul" and layer.groups > 1 else ()
            key = (
                value,
                layer.kind,
                window,
                layer.transposed_input,
                layer.groups,
                layer.view.matrix[2],
                batch,
                layer.sites[site].recurrence,
            )
            found.setdefault(key, []).append(layer)
    return in_order(model, [Stage(str(key[0]), tuple(members), site) for key, members in found.items()])


def in_order(model: Model, stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """Return the stages so that none depends on a later one.

    An input can only depend on layers that produce it, and those read values produced earlier. What R of a
    recurrent node multiplies is there just before its output is. Graph inputs have no producer: the name
    keeps the stages of one value together.
    """

    def place(stage: Stage) -> tuple[float, str]:
        if stage.layers[0].kind == "rnn_recurrence":
            return stage.layers[0].sites[stage.site].node - 0.5, stage.value
        return max(model.index.producer.get(name, -1) for name in stage.reads), stage.value

    return tuple(sorted(stages, key=place))


def row_positions(
    layer: Layer, x: NDArray[np.generic], mask: NDArray[np.bool_] | None, limit: int, seed: int
) -> NDArray[np.int64] | None:
    """Return which rows of ``x`` count: real tokens only, at most ``limit`` drawn at random; None for all."""
    count = row_count(layer, x)
    keep, tokens = None, tokens_of(layer, x)
    if mask is not None and tokens is not None:
        real = apply_row_mask(tokens, mask)
        keep = None if real is None else np.flatnonzero(real)
    available = count if keep is None else len(keep)
    if available <= limit:
        return keep
    chosen = np.sort(np.random.default_rng(seed).choice(available, limit, replace=False))
    return chosen if keep is None else keep[chosen]


def collect(
    streams: Streams,
    stage: Stage,
    masks: Sequence[NDArray[np.bool_] | None],
    *,
    batches: Sequence[int],
    seed: int,
    residuals: bool = False,
    weights: Mapping[str, Floats] | None = None,
    into: Moments | None = None,
    tokens: Sequence[Floats | None] | None = None,
    places: bool = False,
) -> Moments:
    """Sum the statistics of a stage over ``batches`` (numbers into the streams).

    Where the layers have few outputs, what the streams differ by is summed at the outputs (as residual
    differences, with ``x_p`` in place of ``x_d``): G would take most of the time and of the memory.

    Args:
        streams: already advanced to the stage's value (and its residual values).
        stage: what to collect for.
        masks: per batch, True for real tokens.
        batches: which batches to use.
        seed: of the choice of rows.
        residuals: also collect what the residual branches have to make up for.
        weights: layer name -> dense weight (groups, out_features, in_features), where they will be repaired.
        into: sums to add to, which are returned; default new ones.
        tokens: per batch, how often each token counts (B, T), or None; all count alike where the input's rows
            are not tokens.
        places: of a convolution: places count as much as the energy of what the dense layer sees there.

    Raises:
        DataError: when a recurrence sees no state but zero.
        ModelError: when the input holds values whose squares are not finite.
    """
    first = stage.layers[0]
    groups, _, features = first.view.matrix
    limit = max(MIN_ROWS, ROWS_PER_FEATURE * features) // max(len(batches), 1)

    ready: dict[int, _Rows] = {}  # taken apart already, for the spread

    def rows(number: int) -> _Rows:
        if number in ready:
            return ready.pop(number)
        return _rows(
            streams,
            stage,
            number,
            masks[number],
            max(limit, 1),
            seed + number,
            residuals,
            tokens[number] if tokens else None,
            places,
        )

    def shard(part: Sequence[int]) -> Moments:
        moments = Moments.zeros(groups, features) if into is None else into
        if spread is not None:
            moments.spreads.append(spread.empty())
        sums = _Sums(moments, stage, max(MIN_PRODUCT, 2 * features), weights or {})
        for numbers in batched(part, 1 if large else available()):
            for found in map_threads(rows, numbers):
                sums.add(found)
        sums.flush()
        return moments

    large = len(batches) and streams.value(stage.value, batches[0], DENSE).nbytes > SIDE_BY_SIDE
    most = 1 if large or into is not None else min(available(), MAX_SHARDS // (groups * features**2))
    shards = max(1, min(most, len(batches)))
    spread = _spread(rows, batches, ready) if into is None and len(batches) else None
    moments = reduce(add, map_threads(shard, [batches[k::shards] for k in range(shards)]))
    if first.kind == "rnn_recurrence" and into is None and not moments.H.any():
        raise DataError(
            f"the states that weight {first.name!r} of node {first.nodes[0]!r} multiplies are zero in all of "
            "the calibration data: whatever is pruned would seem to change nothing",
            f"longer sequences, or states in the data where they are an input; or --exclude '{first.name}'",
        )
    where = moments.not_finite()
    if where is not None:
        what = f"the input {stage.value!r} of" if where == "" else "what is added to the outputs of"
        name = where or first.name
        raise ModelError(
            f"{what} weight {name!r} holds NaN, infinite or too large values (over 1e18) on the calibration "
            "data",
            "check the data (inputs that are made up, without --data, may be none that the model can take), "
            f"or leave the weight alone with --exclude '{name}'",
        )
    return moments


def _spread(rows: Callable[[int], _Rows], batches: Sequence[int], ready: dict[int, _Rows]) -> Spread:
    """Return a spread around the mean of the first rows, the same for any number of threads.

    What was taken apart for it is left in ``ready``.
    """
    found: dict[int, _Rows] = {}
    for number in batches:
        found[number] = rows(number)
        if sum(item.pruned.shape[1] for item in found.values()) >= MIN_PRODUCT:
            break
    ready.update(found)
    return Spread(_joined([item.pruned for item in found.values()]))


def _rows(
    streams: Streams,
    stage: Stage,
    number: int,
    mask: NDArray[np.bool_] | None,
    limit: int,
    seed: int,
    residuals: bool,
    tokens: Floats | None = None,
    places: bool = False,
) -> _Rows:
    """Return the rows of one batch."""
    first = stage.layers[0]
    dense = activation(streams, first, stage.site, number, DENSE)
    other = differs(streams, first, stage.site)
    pruned = activation(streams, first, stage.site, number, PRUNED) if other else dense
    mask = token_mask(streams, first, stage.site, number, mask)
    positions = row_positions(first, pruned, mask, limit, seed)
    rows_p = input_rows(first, pruned, positions)
    rows_d = rows_p if dense is pruned else input_rows(first, dense, positions)
    differences = {}
    for layer in stage.layers if residuals else ():
        skip, shape = layer.sites[stage.site].residual, output_shape(layer, pruned)
        if not skip or shape is None or not streams.differs(skip):
            continue
        skip_d, skip_p = streams.value(skip, number, DENSE), streams.value(skip, number, PRUNED)
        if np.broadcast_shapes(skip_d.shape, shape) != shape:
            continue  # the branch is larger than the output: one output makes up for several places
        difference = output_rows(layer, np.broadcast_to(skip_d, shape), positions)
        difference = difference - output_rows(layer, np.broadcast_to(skip_p, shape), positions)
        differences[layer.name] = difference / np.float32(layer.alpha)
    counts = _counts(first, pruned, positions, streams.samples[number])
    weights = _row_weights(first, pruned, positions, tokens)
    if places and first.kind == "conv":
        weights = energies(rows_d, counts)
    return _Rows(rows_d, rows_p, differences, counts, weights)


def _row_weights(
    layer: Layer, x: NDArray[np.generic], positions: NDArray[np.int64] | None, tokens: Floats | None
) -> Floats | None:
    """Return how often each row counts (rows,), None for once."""
    rows = tokens_of(layer, x)
    if tokens is None or rows is None:
        return None
    found = apply_row_mask(rows, tokens)
    return found if found is None or positions is None else found[positions]


def energies(rows: Floats, counts: Sequence[int]) -> Floats:
    """Return the mean square of each row, relative to the mean over its sample: (rows,).

    Of a 1x1 convolution that is its activation's energy map; larger windows see the mean of a neighbourhood.

    Args:
        rows: (groups, rows, features).
        counts: rows of each sample, one after the other.
    """
    energy = np.square(rows, dtype=np.float64).mean((0, 2))
    starts = np.cumsum([0, *counts[:-1]])
    mean = np.repeat(np.add.reduceat(energy, starts) / counts, counts)
    return np.where(mean > 0, energy / np.where(mean > 0, mean, 1), 1.0).astype(np.float32)


def _counts(
    layer: Layer, x: NDArray[np.generic], positions: NDArray[np.int64] | None, samples: int
) -> list[int]:
    """Return how many rows are of each sample; all are of one when it cannot be told which is whose."""
    whole = row_count(layer, x)
    if layer.kind in RECURRENT:  # sequences, or several of each sample
        sequences = x.shape[-3]
        samples = sequences if sequences % samples else samples
    elif (
        x.ndim < 2 or x.shape[0] % samples or whole % samples or (layer.groups > 1 and layer.kind == "matmul")
    ):
        samples = 1
    each = whole // samples
    if positions is None:
        return [each] * samples
    found = np.bincount(positions // each, minlength=samples)
    return [int(count) for count in found if count]


@dataclass(frozen=True)
class _Rows:
    """Rows (groups, rows, features) of one batch in both streams: one array when they are equal.

    Attributes:
        dense: x_d.
        pruned: x_p.
        differences: layer name -> what its residual branch has to make up for.
        counts: rows of each sample.
        weights: (rows,) how often each counts; None: once.
    """

    dense: Floats
    pruned: Floats
    differences: dict[str, Floats]
    counts: list[int]
    weights: Floats | None = None


class _Sums:
    """Adds rows to moments in large pieces: each addition touches every element of the matrices."""

    def __init__(self, moments: Moments, stage: Stage, least: int, weights: Mapping[str, Floats]) -> None:
        self.moments, self.stage, self.least, self.weights = moments, stage, least, weights
        _, _, features = stage.layers[0].view.matrix
        outputs = sum(layer.view.matrix[1] for layer in stage.layers)
        self.narrow = bool(weights) and NARROW * outputs <= features
        self._held: list[_Rows] = []

    def add(self, rows: _Rows) -> None:
        """Add the rows of a batch; pieces are alike in what they hold."""
        if self._held and not _alike(self._held[0], rows):
            self.flush()
        self._held.append(rows)
        if sum(item.pruned.shape[1] for item in self._held) >= self.least:
            self.flush()

    def flush(self) -> None:
        """Add what is still held."""
        if not self._held:
            return
        held, self._held = self._held, []
        pruned = _joined([item.pruned for item in held])
        same = held[0].dense is held[0].pruned
        dense = pruned if same else _joined([item.dense for item in held])
        counts = [count for item in held for count in item.counts]
        differences = {
            name: _joined([item.differences[name] for item in held]) for name in held[0].differences
        }
        found = [item.weights for item in held if item.weights is not None]
        weights = np.concatenate(found) if found else None
        if self.narrow and not same:
            with np.errstate(over="ignore", invalid="ignore"):  # seen by whoever reads the sums
                moved = dense - pruned
                for layer in self.stage.layers:
                    difference = multiply(moved, self.weights[layer.name].swapaxes(1, 2))
                    differences[layer.name] = difference + differences.get(layer.name, np.float32(0))
        self.moments.add(pruned if self.narrow else dense, pruned, counts, weights)
        for name, difference in differences.items():
            self.moments.add_residual(name, difference, pruned, weights)
        for layer in self.stage.layers:
            if self._varies(layer, same):
                self.moments.add_outputs(layer.name, dense, self.weights[layer.name], weights)

    def _varies(self, layer: Layer, same: bool) -> bool:
        """Whether the variance of a layer's outputs will be asked for."""
        conv = layer.window is not None and layer.bias is not None and not layer.sites[0].residual
        return conv and layer.name in self.weights and not same


def _alike(a: _Rows, b: _Rows) -> bool:
    same = (a.dense is a.pruned) == (b.dense is b.pruned) and (a.weights is None) == (b.weights is None)
    return same and a.differences.keys() == b.differences.keys()


def _joined(pieces: list[Floats]) -> Floats:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


def token_counts(
    streams: Streams, stage: Stage, masks: Sequence[NDArray[np.bool_] | None]
) -> NDArray[np.int64]:
    """Return how often each row of an embedding table is looked up: (table rows,)."""
    table = stage.layers[0].view.stored[0]
    counts = np.zeros(table, dtype=np.int64)
    for number in range(streams.size):
        ids = streams.value(stage.value, number, DENSE)
        mask = masks[number]
        chosen = ids[mask] if mask is not None and mask.shape == ids.shape else ids.ravel()
        counts += np.bincount(chosen.astype(np.int64) % table, minlength=table)
    return counts
