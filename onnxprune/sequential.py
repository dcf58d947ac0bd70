"""Prune the layers in graph order, each on the already pruned prefix, towards the dense outputs.

The two streams (dense and pruned activations) advance together, so the whole walk costs one forward
pass of each model however many layers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.collect import Stage, collect, find_stages, token_counts
from onnxprune.calibration.cut import Cutter
from onnxprune.calibration.stats import Moments
from onnxprune.calibration.streams import Streams
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.parallel import map_threads, multiply
from onnxprune.solvers import admm, embedding
from onnxprune.solvers.columns import column_order
from onnxprune.solvers.patterns import Mask, Pattern
from onnxprune.solvers.prune import Method, prune_matrix
from onnxprune.solvers.reconstruct import bias_shift, restore_variance, target_weight

Floats = NDArray[np.float32]
SMALLEST = 2.0**-24  # above 0 in fp16


@dataclass(frozen=True)
class Solved:
    """What happened to one layer.

    Attributes:
        name: of the weight.
        zeros: exact number of zeros in it now.
        error: relative error of the layer's output, ``||(W* - W') x||^2 / ||W* x||^2``; None for tables.
        damping: the recipe's; more when Cholesky failed. The ridge is this or what :func:`ridge` says.
        refitted: True when a weight that stays dense was re-fitted.
        pattern: that its zeros obey.
    """

    name: str
    zeros: int
    error: float | None
    damping: float
    refitted: bool = False
    pattern: Pattern = field(default_factory=Pattern)


@dataclass(frozen=True)
class Solution:
    """New values for one layer, ready to be written into the model."""

    weight: Floats  # (groups, out_features, in_features)
    zeros: int
    shift: NDArray[np.float64] | None  # what to add to the output, (groups * out_features,)
    error: float | None
    damping: float

    def arrays(self, model: Model, layer: Layer) -> dict[str, NDArray[np.generic]]:
        """Return the new weight (and bias) by name, in the stored shapes and types of ``model``."""
        weight = layer.view.to_stored(self.weight).astype(layer.dtype)
        arrays: dict[str, NDArray[np.generic]] = {layer.name: weight}
        if layer.bias is not None and self.shift is not None:
            old = model.array(layer.bias.name)
            factor = layer.bias.sign * layer.alpha / layer.bias.scale
            arrays[layer.bias.name] = (
                old.astype(np.float64) + factor * self.shift.reshape(old.shape)
            ).astype(old.dtype)
        return arrays


@dataclass(frozen=True)
class Job:
    """One layer to be solved: dense weight (groups, out, in), statistics, the zeros wanted, their pattern."""

    layer: Layer
    W: Floats
    moments: Moments
    zeros: int
    pattern: Pattern


def solve_layers(jobs: Sequence[Job], method: Method, *, repair: bool) -> list[Solution]:
    """Solve independent layers (or one layer at several sparsities); what the Hessians cost is shared."""
    shared: dict[tuple[int, bool, admm.Schedule], admm.Prepared] = {}
    keys = [
        (
            id(job.moments),
            repair and job.layer.bias is not None,
            admm.schedule_for(job.W.shape, quick=method.quick),
        )
        for job in jobs
    ]
    if method.criterion == "obs" and method.solver == "admm":
        for key, job in zip(keys, jobs, strict=True):
            features = job.layer.view.matrix[2]
            wanted = keys.count(key) > 1 and job.zeros and features <= admm.MAX_SHARED
            if wanted and key not in shared and column_order(job.layer, job.pattern) is None:
                H, _, _ = job.moments.centred(job.layer.name, key[1])
                shared[key] = admm.Prepared(H, ridge(job.moments, H, method.damping), key[2], keep=True)

    def solve(item: tuple[Job, tuple[int, bool, admm.Schedule]]) -> Solution:
        job, key = item
        return solve_layer(
            job.layer,
            job.W,
            job.moments,
            job.zeros,
            replace(method, pattern=job.pattern),
            repair=repair,
            prepared=shared.get(key),
        )

    return map_threads(solve, zip(jobs, keys, strict=True))


def solve_layer(
    layer: Layer,
    W: Floats,
    moments: Moments,
    zeros: int,
    method: Method,
    *,
    repair: bool,
    prepared: admm.Prepared | None = None,
) -> Solution:
    """Prune and repair one layer from its statistics.

    Args:
        layer: the layer.
        W: (groups, out_features, in_features) its dense weight.
        moments: statistics of its inputs in both streams.
        zeros: weights to set to zero.
        method: how.
        repair: aim at the dense model's outputs and correct the bias; otherwise only prune.
        prepared: see :func:`onnxprune.solvers.prune.prune_matrix`.
    """
    centre = repair and layer.bias is not None
    # Wanda's norms are those of the inputs, not of their deviations from the mean.
    H, G, R = moments.centred(layer.name, centre and method.criterion == "obs")
    target, given = W, method.damping
    wanted = used = ridge(moments, H, given)
    if repair and (moments.moved or R is not None):
        target, used = target_weight(W, H, G, R, wanted)
    method = replace(method, damping=used)
    order = column_order(layer, method.pattern)
    if order is None:
        pruned, mask = prune_matrix(target, H, zeros, method, prepared)
    else:
        pruned, mask = prune_matrix(target[:, :, order], H[:, order][:, :, order], zeros, method)
        back = np.argsort(order)
        pruned, mask = pruned[:, :, back], mask[:, :, back]
    error = relative_error(target, pruned, H)
    # Least squares shrinks what it cannot predict, and a stack of convolutions has nothing that undoes it.
    # Not where a residual branch is added: there the sum matters, and r has already been aimed at.
    if centre and moments.moved and moments.D is not None and not layer.sites[0].residual:
        pruned = restore_variance(W, pruned, moments.dense_covariance(), H)
    if method.pattern.kind == "block" and zeros:
        pruned = fill_kept(pruned, mask)
    shift = bias_shift(moments, layer.name, W, pruned).ravel() if centre else None
    return Solution(pruned, int((~mask).sum()), shift, error, given * used / wanted)


def ridge(moments: Moments, H: NDArray[np.float64], least: float) -> float:
    """Return the ridge for ``H``, as a share of its mean diagonal: what its noise asks for, or ``least``.

    Of 256 images a classifier sees 256 rows: without the ridge its weights would fit them whatever is pruned.
    """
    share = moments.uncertainty()
    varies = moments.variance() / np.maximum(np.einsum("gii->g", H), 1e-300)  # the rest of H are the means
    return max(least, share / (1 - share) * min(1.0, float(np.median(varies))))


def fill_kept(W: Floats, mask: Mask) -> Floats:
    """Return ``W`` without zeros where ``mask`` is True: kernels know blocks by what is not zero.

    What takes their place is the smallest number of fp16, or a millionth of the mean weight if that is less.
    """
    size = min(SMALLEST, 1e-6 * float(np.abs(W).mean(dtype=np.float64))) or SMALLEST
    return np.where(mask & (np.abs(W) < size), np.copysign(np.float32(size), W), W)


def relative_error(W: Floats, pruned: Floats, H: NDArray[np.float64]) -> float:
    """Return ``tr(D H D^T) / tr(W H W^T)`` with ``D = W - pruned``."""
    H32 = (H / max(float(np.einsum("gii->gi", H).max(initial=0.0)), 1e-300)).astype(np.float32)
    D = W - pruned
    whole = float(np.einsum("goi,goi->", multiply(W, H32), W, dtype=np.float64))
    return float(np.einsum("goi,goi->", multiply(D, H32), D, dtype=np.float64)) / whole if whole > 0 else 0.0


def layer_pattern(layer: Layer, pattern: Pattern) -> Pattern:
    """Return the pattern of a layer: no kernel looks rows up in blocks, so in tables they would only cost."""
    return Pattern() if layer.kind == "embedding" and pattern.kind == "block" else pattern


def dense_matrix(model: Model, layer: Layer) -> Floats:
    """Return the layer's weight as (groups, out_features, in_features) float32."""
    return np.ascontiguousarray(layer.view.to_matrix(model.array(layer.name)), dtype=np.float32)


def open_residuals(cutter: Cutter, stage: Stage, unsolved: set[int]) -> list[str]:
    """Return the residual values of a stage that can be computed without any layer still to be solved."""
    found = []
    for layer in stage.layers:
        skip = layer.sites[stage.site].residual
        if skip and not cutter.ancestors([skip]) & unsolved:
            found.append(skip)
    return found


def prune_sequential(
    dense: Model,
    pruned: Model,
    layers: Sequence[Layer],
    zeros: Mapping[str, int],
    streams: Streams,
    masks: Sequence[NDArray[np.bool_] | None],
    method: Method,
    *,
    seed: int,
    patterns: Mapping[str, Pattern] | None = None,
    tied: Mapping[str, Moments] | None = None,
    repair: bool = True,
    on_layer: Callable[[Solved], None] = lambda solved: None,
) -> tuple[Solved, ...]:
    """Prune every layer; ``pruned`` is changed in place.

    Args:
        dense: the model as it came.
        pruned: a copy of it.
        layers: what may change.
        zeros: layer name -> exact number of zeros; 0 leaves the layer dense (and re-fits it).
        streams: both models over the calibration batches, not advanced yet.
        masks: per batch, which tokens are real.
        method: how a matrix is pruned.
        seed: of the choice of rows.
        patterns: layer name -> pattern, where it is not the method's.
        tied: statistics of the second and later uses of tied weights, from the dense model.
        repair: see :func:`solve_layer`.
        on_layer: called after each layer.
    """
    unsolved = {site.node for layer in layers for site in layer.sites}
    results: list[Solved] = []
    asked: set[str] = set()
    stages = find_stages(dense, layers)
    kinds = {
        layer.name: (patterns or {}).get(layer.name, layer_pattern(layer, method.pattern)) for layer in layers
    }
    for number, stage in enumerate(stages):
        skips = open_residuals(streams.cutter, stage, unsolved) if repair else []
        later = {
            v for s in stages[number:] for v in (s.value, *(layer.sites[0].residual for layer in s.layers))
        }
        streams.advance([stage.value, *skips], sorted(asked - later))
        asked = (asked & later) | {stage.value, *skips}
        if stage.layers[0].kind == "embedding":
            counts = token_counts(streams, stage, masks)
            solutions = [
                solve_table(dense, layer, counts, zeros[layer.name], kinds[layer.name])
                for layer in stage.layers
            ]
        else:
            moments = collect(
                streams, stage, masks, batches=range(streams.size), seed=seed, residuals=bool(skips)
            )
            jobs = [
                Job(
                    layer,
                    dense_matrix(dense, layer),
                    moments + tied[layer.name] if tied and layer.name in tied else moments,
                    zeros[layer.name],
                    kinds[layer.name],
                )
                for layer in stage.layers
            ]
            solutions = solve_layers(jobs, method, repair=repair)
        for layer, solution in zip(stage.layers, solutions, strict=True):
            arrays = solution.arrays(dense, layer)
            for name, array in arrays.items():
                pruned.set_array(name, array)
            streams.weights_changed(arrays)
            unsolved -= {site.node for site in layer.sites}
            refitted = repair and zeros[layer.name] == 0
            pattern = kinds[layer.name] if solution.zeros else Pattern()
            results.append(
                Solved(layer.name, solution.zeros, solution.error, solution.damping, refitted, pattern)
            )
            on_layer(results[-1])
    return tuple(results)


def solve_table(
    dense: Model, layer: Layer, counts: NDArray[np.int64], zeros: int, pattern: Pattern
) -> Solution:
    """Prune one embedding table; ``counts`` (rows,) says how often each row was looked up."""
    W = dense_matrix(dense, layer)
    mask = embedding.keep(W[0], counts, pattern, zeros)
    return Solution(np.where(mask, W, np.float32(0)), int((~mask).sum()), None, None, 0.0)
