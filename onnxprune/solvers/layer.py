"""Solve layers from the statistics of their inputs: what to aim at, the pruned weight, the bias."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.stats import Moments
from onnxprune.errors import ModelError
from onnxprune.layers import Layer
from onnxprune.model import Model
from onnxprune.parallel import available, map_threads, multiply
from onnxprune.scoring.evidence import Evidence
from onnxprune.solvers import admm
from onnxprune.solvers.columns import column_order
from onnxprune.solvers.patterns import Mask, Pattern
from onnxprune.solvers.prune import Method, prune_matrix
from onnxprune.solvers.reconstruct import bias_shift, restore_variance, target_weight, target_within

Floats = NDArray[np.float32]
SMALLEST = 2.0**-24  # above 0 in fp16
# Times the ridge that the noise of H asks for, where a layer makes up for what those before it lost: little
# of that can be predicted, and what few samples make of the rest is chance. More in docs/methods.md.
CAUTION = 4.0


def dense_matrix(model: Model, layer: Layer) -> Floats:
    """Return the layer's weight as (groups, out_features, in_features) float32."""
    return np.ascontiguousarray(layer.view.to_matrix(model.array(layer.name)), dtype=np.float32)


@dataclass(frozen=True)
class Solution:
    """New values for one layer, ready to be written into the model."""

    weight: Floats  # (groups, out_features, in_features)
    zeros: int
    shift: NDArray[np.float64] | None  # what to add to the output, (groups * out_features,)
    error: float | None
    damping: float

    def arrays(
        self, model: Model, layer: Layer, beside: Model | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """Return the new weight (and bias) by name, in the stored shapes and types of ``model``.

        Args:
            model: the dense model.
            layer: of it.
            beside: where the rest of a constant comes from that holds another layer's bias as well; default
                ``model``.
        """
        weight = layer.view.to_stored(self.weight).astype(layer.dtype)
        arrays: dict[str, NDArray[np.generic]] = {layer.name: weight}
        if layer.bias is not None and self.shift is not None:
            old = layer.bias.part(model.array(layer.bias.name))
            factor = layer.bias.sign * layer.alpha / layer.bias.scale
            fresh = np.array((beside or model).array(layer.bias.name))
            moved = old.astype(np.float64) + factor * self.shift.reshape(old.shape)
            layer.bias.part(fresh)[...] = moved.astype(old.dtype)
            arrays[layer.bias.name] = fresh
        return arrays


@dataclass(frozen=True)
class Job:
    """One layer to be solved: dense weight (groups, out, in), statistics, the zeros wanted, their pattern.

    ``rows`` (groups, out) says how much the outputs count in the choice of the zeros; None: all alike.
    ``support`` (groups, out, in) is False where whole rows and columns are gone already; None: nowhere.
    """

    layer: Layer
    W: Floats
    moments: Moments
    zeros: int
    pattern: Pattern
    rows: Floats | None = None
    support: Mask | None = None


@dataclass(frozen=True)
class Aim:
    """What a layer is asked for before anything is zero.

    Attributes:
        H: (groups, in_features, in_features) second moments of its inputs in the pruned model, per row.
        weight: (groups, out_features, in_features) what gives the dense model's outputs from them.
        wanted: ridge, as a share of the mean diagonal of H.
        used: the ridge that made H invertible.
    """

    H: NDArray[np.float64]
    weight: Floats
    wanted: float
    used: float


def solve_layers(jobs: Sequence[Job], method: Method, *, repair: bool) -> list[Solution]:
    """Solve independent layers (or one layer at several sparsities); what the Hessians cost is shared.

    Args:
        jobs: the layers.
        method: how a matrix is pruned; each job has a pattern of its own.
        repair: aim at the dense model's outputs and correct the bias; otherwise only prune.

    Raises:
        ModelError: when statistics cannot be inverted.
    """
    try:
        return _solve_layers(jobs, method, repair)
    except np.linalg.LinAlgError as error:
        names = ", ".join(repr(job.layer.name) for job in jobs)
        raise ModelError(
            f"the statistics of the inputs of {names} cannot be inverted with --damping {method.damping:g}: "
            f"{error}",
            "a larger --damping, or more --data, helps",
        ) from error


def _solve_layers(jobs: Sequence[Job], method: Method, repair: bool) -> list[Solution]:
    keys = [_key(job, method, repair) for job in jobs]
    shared: dict[tuple[object, ...], admm.Prepared] = {}
    for key, job in zip(keys, jobs, strict=True):
        if key not in shared and _inverts_once(job, method):
            H, _, _ = job.moments.centred(job.layer.name, _centred(job, repair))
            share = ridge(job.moments, H, method.damping)
            shared[key] = admm.Prepared(H, share, admm.schedule_for(job.W.shape, quick=method.quick))
    aims: dict[int, Aim] = {}

    def take_aim(number: int) -> None:
        aims[number] = aim(jobs[number], method, repair=repair)

    # Neither waits for the other, so a layer that is alone keeps more than one processor busy.
    tasks: list[Callable[[], None]] = [partial(take_aim, number) for number in range(len(jobs))]
    tasks += [inversion for prepared in shared.values() for inversion in prepared.inversions()]
    map_threads(lambda task: task(), tasks)
    times = Counter(id(aimed.weight) for aimed in aims.values())
    for number, key in enumerate(keys):
        # Blocks of any rows reorder the weight: there is nothing to share
        job = jobs[number]
        alone = job.pattern.free or job.rows is not None
        if key in shared and times[id(aims[number].weight)] > 1 and not alone:
            shared[key].share(aims[number].weight)

    def solve(number: int) -> Solution:
        return solve_layer(jobs[number], aims[number], method, shared.get(keys[number]), repair=repair)

    even = len(jobs) - len(jobs) % available()
    rest = range(even, len(jobs))  # one after the other, each with all threads
    return map_threads(solve, range(even)) + [solve(number) for number in rest]


def _centred(job: Job, repair: bool) -> bool:
    return repair and job.layer.bias is not None


def _key(job: Job, method: Method, repair: bool) -> tuple[object, ...]:
    """What jobs must have in common to share inverses."""
    return id(job.moments), _centred(job, repair), admm.schedule_for(job.W.shape, quick=method.quick)


def _inverts_once(job: Job, method: Method) -> bool:
    """Whether the inverses of the job's H are made before it is solved, and fit in memory."""
    by_admm = method.mixture.solves and method.solver == "admm" and job.zeros > 0
    in_order = column_order(job.layer, job.pattern) is None
    return by_admm and in_order and job.layer.view.matrix[2] <= admm.MAX_SHARED


def aim(job: Job, method: Method, *, repair: bool) -> Aim:
    """Return what to ask of a layer: the dense model's outputs, or without ``repair`` its own weight."""
    # Wanda's norms are those of the inputs, not of their deviations from the mean.
    centre = _centred(job, repair) and method.mixture.solves
    H, G, R = job.moments.centred(job.layer.name, centre)
    wanted = ridge(job.moments, H, method.damping)
    careful = ridge(job.moments, H, method.damping, CAUTION)
    if repair and job.support is not None:
        kept = np.asarray(job.support.any(axis=1))
        H, weight, used = target_within(job.W, H, G, R, wanted, careful, kept)
        return Aim(H, weight, wanted, used)
    if not repair or (G is H and R is None):
        return Aim(H, job.W, wanted, wanted)
    weight, used = target_weight(job.W, H, G, R, careful)
    return Aim(H, weight, wanted, wanted * (used / careful))


def solve_layer(
    job: Job, aimed: Aim, method: Method, prepared: admm.Prepared | None = None, *, repair: bool
) -> Solution:
    """Prune one layer and repair it; see :func:`solve_layers`.

    Args:
        job: the layer.
        aimed: what :func:`aim` says of it.
        method: how.
        prepared: see :func:`onnxprune.solvers.prune.prune_matrix`.
        repair: whether to correct the bias.
    """
    layer, moments, H, target = job.layer, job.moments, aimed.H, aimed.weight
    centre, given = _centred(job, repair), method.damping
    weighted = target if job.rows is None else target * job.rows[:, :, None]
    evidence = evidence_of(job, weighted, method) if method.mixture.scores else Evidence(weighted, H)
    method = replace(method, pattern=job.pattern, damping=aimed.used, seed=_seed(layer, method))
    order = column_order(layer, method.pattern)
    if order is None:
        pruned, mask = prune_matrix(weighted, H, job.zeros, method, prepared, evidence)
    else:
        seen = evidence.columns(order)
        pruned, mask = prune_matrix(seen.W, H[:, order][:, :, order], job.zeros, method, None, seen)
        back = np.argsort(order)
        pruned, mask = pruned[:, :, back], mask[:, :, back]
    if job.rows is not None:
        pruned = np.where(mask, pruned / job.rows[:, :, None], np.float32(0))
    if job.support is not None:
        pruned = np.where(job.support, pruned, np.float32(0))
    error = relative_error(target, pruned, H) if job.support is None else None
    # Least squares shrinks what it cannot predict, and a stack of convolutions has nothing that undoes it.
    # Not where a residual branch is added: there the sum matters, and r has already been aimed at.
    if centre and layer.name in moments.outputs:
        covariance, _, _ = moments.centred(layer.name, True)
        pruned = restore_variance(pruned, moments.outputs[layer.name].variance(), covariance)
    if method.pattern.kind == "block" and job.zeros:
        pruned = fill_kept(pruned, mask, layer.dtype)
    shift = bias_shift(moments, layer.name, job.W, pruned).ravel() if centre else None
    return Solution(pruned, int((~mask).sum()), shift, error, given * (aimed.used / aimed.wanted))


def evidence_of(job: Job, W: Floats, method: Method) -> Evidence:
    """Return what criteria may look at; ``W`` is to be pruned: the job's weight or its repaired form."""
    H, _, _ = job.moments.centred(job.layer.name, False)
    mean = job.moments.sum_p / (job.moments.n or 1)
    return Evidence(W, H, mean, method.slopes.get(job.layer.name), method.alpha)


def _seed(layer: Layer, method: Method) -> int | None:
    """Return the seed of one layer: those of equal shape are not to draw the same numbers."""
    return None if method.seed is None else method.seed * 2**32 + zlib.crc32(layer.name.encode())


def ridge(moments: Moments, H: NDArray[np.float64], least: float, times: float = 1.0) -> float:
    """Return the ridge for ``H``, as a share of its mean diagonal: ``times`` its noise, or ``least``.

    Of 256 images a classifier sees 256 rows: without the ridge its weights would fit them whatever is pruned.
    """
    share = moments.uncertainty()
    varies = moments.variance() / np.maximum(np.einsum("gii->g", H), 1e-300)  # the rest of H are the means
    return max(least, times * share / (1 - share) * min(1.0, float(np.median(varies))))


def fill_kept(W: Floats, mask: Mask, dtype: np.dtype[np.generic]) -> Floats:
    """Return ``W`` without zeros where ``mask`` is True: kernels know blocks by what is not zero.

    What takes their place is a millionth of the mean weight, and never more than the smallest number of fp16;
    that number itself where ``dtype``, which the weight is stored in, is fp16.
    """
    size = SMALLEST
    if dtype != np.float16:
        size = min(SMALLEST, 1e-6 * float(np.abs(W).mean(dtype=np.float64))) or SMALLEST
    return np.where(mask & (np.abs(W) < size), np.copysign(np.float32(size), W), W)


def relative_error(W: Floats, pruned: Floats, H: NDArray[np.float64]) -> float:
    """Return ``tr(D H D^T) / tr(W H W^T)`` with ``D = W - pruned``."""
    H32 = (H / max(float(np.einsum("gii->gi", H).max(initial=0.0)), 1e-300)).astype(np.float32)
    D = W - pruned
    whole = float(np.einsum("goi,goi->", multiply(W, H32), W, dtype=np.float64))
    return float(np.einsum("goi,goi->", multiply(D, H32), D, dtype=np.float64)) / whole if whole > 0 else 0.0
