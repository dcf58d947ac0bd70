"""ADMM over the support of a whole layer, as in ALPS.

Source: Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large
Language Models" (2024), with a fixed penalty schedule instead of an eigendecomposition, so that an
iteration costs one matrix product. Twelve layers of MiniLM and EfficientNet-Lite0 at 70 % against the
column sweep (:mod:`onnxprune.solvers.sweep`): 15 to 70 % less output error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune.parallel import map_threads, multiply, split
from onnxprune.solvers.linalg import damped, spd_inverse
from onnxprune.solvers.patterns import Mask, Pattern
from onnxprune.solvers.refit import refit

Floats = NDArray[np.float32]
SAMPLE = 16384  # entries that estimate the threshold while the support still moves


@dataclass(frozen=True)
class Schedule:
    """How long to iterate.

    Attributes:
        penalties: (rho, iterations) one after the other; rho is for a Hessian with unit diagonal.
        refit: steps of the final least squares.
        relaxation: how far an iteration goes past its own result (Boyd et al., "Distributed Optimization and
            Statistical Learning via ADMM", 2011, section 3.4.3): helps where there are few iterations.
    """

    penalties: tuple[tuple[float, int], ...]
    refit: int
    relaxation: float = 1.0


# Layers of MiniLM and EfficientNet-Lite0, ridges of 1 to 50 %: CAREFUL has 5 % more error than THOROUGH, in a
# quarter of the time; FULL has the error of CAREFUL (-5 to +3 %) in three quarters of that, but small layers
# are ranked better by CAREFUL (CIFAR ResNet-20: 80.2 instead of 79.7, six seeds). QUICK has another 12 to
# 19 % (+-7 %), evenly enough to rank large layers by.
THOROUGH = Schedule(tuple((float(rho), 10) for rho in np.geomspace(0.1, 5, 10)), 10)
CAREFUL = Schedule(((0.2, 7), (0.6, 6), (1.8, 5)), 4, 1.4)
FULL = Schedule(((0.3, 7), (0.8, 8)), 3, 1.5)
QUICK = Schedule(((0.6, 4),), 2, 1.6)
MAX_SHARED = 4096  # input features up to which the inverses of a Hessian are held: 335 MB
SMALL = 50_000_000  # out_features * in_features^2, the cost of an iteration


def schedule_for(shape: tuple[int, ...], *, quick: bool) -> Schedule:
    """Return the schedule of a matrix (groups, out_features, in_features)."""
    small = shape[-2] * shape[-1] ** 2 <= SMALL
    if quick:
        return CAREFUL if small else QUICK
    return THOROUGH if small else FULL


@dataclass(frozen=True)
class Target:
    """The part of the work that depends on the weight too, but not on the sparsity.

    Attributes:
        W: (groups, out_features, in_features) weights to approximate.
        start: W for the Hessian with unit diagonal.
        B: ``start`` times that Hessian.
        ridges: rho -> the relaxation times ``B (Hn + rho I)^-1``, where it was made in advance.
    """

    W: Floats
    start: Floats
    B: Floats
    ridges: dict[float, Floats]


class Prepared:
    """The part of the work that depends on the Hessian alone, for layers and sparsities that share it.

    Args:
        H: (groups, n, n) second moments of the inputs.
        damping: ridge as a share of the mean diagonal of H.
        schedule: penalties.
    """

    def __init__(self, H: NDArray[np.floating], damping: float, schedule: Schedule) -> None:
        Hd = damped(H, damping)
        diagonal = np.einsum("gii->gi", Hd)
        if not (diagonal > 0).all():  # what float32 leaves of a feature that is large and hardly varies
            raise np.linalg.LinAlgError("the diagonal is not positive")
        scale = np.sqrt(diagonal)
        Hd /= scale[:, None, :]
        Hd /= scale[:, :, None]
        self.Hn = Hd.astype(np.float32)
        self.scale = scale[:, None, :].astype(np.float32)
        self.schedule = schedule
        self._kept: dict[float, Floats] = {}
        self._targets: list[Target] = []

    def share(self, W: Floats) -> None:
        """Hold what several sparsities of ``W``, this very array, have in common."""
        target = self.target(W)
        if target.ridges:
            return
        for rho, _, inverse in self.penalties():
            target.ridges[rho] = self.ridge_solution(target, inverse)
        self._targets.append(target)

    def target(self, W: Floats) -> Target:
        """Return what was shared for ``W``, or make it."""
        for held in self._targets:
            if held.W is W:
                return held
        start = W * self.scale
        return Target(W, start, multiply(start, self.Hn), {})

    def ridge_solution(self, target: Target, inverse: Floats) -> Floats:
        """Return the relaxation times ``B (Hn + rho I)^-1``."""
        found = multiply(target.B, inverse)
        found *= np.float32(self.schedule.relaxation)
        return found

    def inversions(self) -> list[Callable[[], None]]:
        """Return what may be called, in any order and any thread, so that the inverses are held.

        They take n^2 floats per penalty; what is not held is made each time it is used.
        """

        def keep(rho: float) -> None:
            self._kept[rho] = self._inverse(rho)

        return [partial(keep, rho) for rho, _ in self.schedule.penalties]

    def _inverse(self, rho: float) -> Floats:
        shifted = self.Hn.copy()
        np.einsum("gii->gi", shifted)[:] += np.float32(rho)
        return np.asarray(spd_inverse(shifted), dtype=np.float32)

    def penalties(self) -> Iterator[tuple[float, int, Floats]]:
        """Yield ``rho, iterations, (Hn + rho I)^-1``."""
        for rho, iterations in self.schedule.penalties:
            yield rho, iterations, self._kept[rho] if rho in self._kept else self._inverse(rho)


def solve(
    W: Floats,
    H: NDArray[np.floating] | Prepared,
    pattern: Pattern,
    zeros: int,
    *,
    damping: float,
    quick: bool = False,
    emphasis: Floats | None = None,
) -> tuple[Floats, Mask]:
    """Return the pruned weights and their mask; minimises ``||(W - W') X||^2`` over both.

    Args:
        W: (groups, out_features, in_features) weights to approximate.
        H: (groups, in_features, in_features) second moments of the inputs, or what was prepared from them.
        pattern: what may be zero together.
        zeros: zeros wanted in the mask.
        damping: ridge as a share of the mean diagonal of H.
        quick: fewer iterations, for an estimate; what was prepared goes first.
        emphasis: factors of the shape of W, above 0, on the energies that the support is chosen by; the
            weights that stay are still those that minimise the error. None: all 1.

    Raises:
        np.linalg.LinAlgError: when H is not positive definite even with damping.
    """
    schedule = schedule_for(W.shape, quick=quick)
    prepared = H if isinstance(H, Prepared) else Prepared(H, damping, schedule)
    target = prepared.target(W)
    Z = _Iteration(target, prepared, pattern, zeros, emphasis).run()
    keep = pattern.keep(Z * Z if emphasis is None else Z * Z * emphasis, zeros)
    result = np.empty_like(Z)

    def finish(rows: slice) -> None:
        result[:, rows] = refit(
            Z[:, rows], keep[:, rows], prepared.Hn, target.B[:, rows], prepared.schedule.refit
        )
        result[:, rows] /= prepared.scale

    map_threads(finish, split(W.shape[1]))
    return result, keep


class _Iteration:
    """Buffers of the iterations, written in place: fresh memory costs as much as the arithmetic.

    Scaled form: D is the sparse variable, U the dual divided by rho. After every step Z = D + U with D
    on the support and U off it, so Z and the support are the whole state. Masks are multiplied with:
    numpy's masked writes take ten times as long.
    """

    def __init__(
        self, target: Target, prepared: Prepared, pattern: Pattern, zeros: int, emphasis: Floats | None
    ) -> None:
        self.target, self.prepared, self.pattern, self.zeros = target, prepared, pattern, zeros
        self.emphasis = emphasis
        self.relaxation = np.float32(prepared.schedule.relaxation)
        start = target.start
        self.rows = split(start.shape[1])
        self.Z = start.copy()
        self.Z_next, self.work = np.empty_like(start), np.empty_like(start)
        self.drop = np.zeros(start.shape, dtype=bool)
        self.stride = max(1, start.size // SAMPLE)
        while math.gcd(self.stride, start.shape[-1]) > 1:  # every column has to be seen
            self.stride += 1

    def run(self) -> Floats:
        """Return the last Z."""
        previous = 0.0
        for rho, iterations, inverse in self.prepared.penalties():
            made = self.target.ridges.get(rho)
            self.ridge = self.prepared.ridge_solution(self.target, inverse) if made is None else made
            scaled = inverse * (np.float32(rho) * self.relaxation)
            off = np.float32(
                previous / rho if previous else 1
            )  # the dual keeps its size, U = V / rho shrinks
            for _ in range(iterations):
                map_threads(partial(self._step, scaled, off), self.rows)
                self.Z, self.Z_next = self.Z_next, self.Z
                self._choose()
                off = np.float32(1)
            previous = rho
        return self.Z

    def _step(self, inverse: Floats, off: np.float32, rows: slice) -> None:
        """One iteration of some rows: ``Z' = a X + (1 - a) D + U, X = (rho (D - U) + B) (Hn + rho I)^-1``.

        ``a`` is the relaxation; ``inverse`` and the ridge solution have it as a factor already, and rho too.
        """
        Z, Z_next, U = self.Z[:, rows], self.Z_next[:, rows], self.work[:, rows]
        np.multiply(Z, self.drop[:, rows], out=U)
        Z -= U
        U *= off
        Z -= U
        np.matmul(Z, inverse, out=Z_next)
        Z_next += self.ridge[:, rows]
        if self.relaxation != 1:
            Z *= 1 - self.relaxation  # D - U
            Z_next += Z
            U *= 2 - self.relaxation
        Z_next += U
        np.multiply(Z_next, Z_next, out=U)  # the energy that _choose ranks
        if self.emphasis is not None:
            U *= self.emphasis[:, rows]

    def _choose(self) -> None:
        """Move the support; the exact count does not matter before the last iteration."""
        energy = self.work
        if self.pattern.kind != "unstructured" or energy.size <= SAMPLE:
            np.logical_not(self.pattern.keep(energy, self.zeros), out=self.drop)
            return
        sample = energy.ravel()[:: self.stride]
        rank = min(sample.size - 1, int(self.zeros / energy.size * sample.size))
        np.less_equal(energy, np.partition(sample, rank)[rank], out=self.drop)
