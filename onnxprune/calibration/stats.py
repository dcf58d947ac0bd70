"""Statistics of a layer's inputs, kept as sums: shards add exactly.

``x_d`` is a row of the dense model's input to the layer, ``x_p`` the same row in the pruned model, and
``r`` what the dense residual branch has more than the pruned one at that place: the layer is asked to
produce ``W x_d + r`` from ``x_p``, so that errors of earlier layers do not pile up along the branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.spread import Spread
from onnxprune.parallel import LEAST, map_threads, multiply, split

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]

# Rows whose mean is this many times their variance get more exact products: float32 would lose the variance.
_FAR = 100
MOST_NOISE = 0.9
_ROUNDING = 1e-12  # variance that float32 activations have from rounding alone, relative to their mean square


@dataclass(frozen=True)
class Outputs:
    """Sums over rows y of a layer's outputs.

    Attributes:
        n: rows seen, or the sum of their weights.
        sum: (groups, out_features), of y.
        squares: (groups, out_features), of y^2.
    """

    n: float
    sum: Sums
    squares: Sums

    @classmethod
    def of(cls, deviations: Floats, mean: NDArray[np.floating], weights: Floats | None = None) -> Outputs:
        """Sum ``y = deviations + mean``, (groups, rows, out_features) and (groups, out_features).

        Apart because float32 would lose the variance of outputs that are far from zero. ``weights`` (rows,)
        say how often each row counts.
        """
        n, far = _count(deviations, weights), mean.astype(np.float64)
        sums = _sum(deviations, weights)
        squares = _sum(np.square(deviations, dtype=np.float64), weights)
        return cls(n, sums + n * far, squares + 2 * far * sums + n * far**2)

    def __add__(self, other: Outputs) -> Outputs:
        """Merge two shards."""
        return Outputs(self.n + other.n, self.sum + other.sum, self.squares + other.squares)

    def variance(self) -> Sums:
        """Return the variance of each output: (groups, out_features)."""
        n = self.n or 1
        return np.asarray(np.maximum(self.squares / n - (self.sum / n) ** 2, 0.0))


@dataclass
class Moments:
    """Sums over rows for layers that share one input.

    Rows may have weights ``a``: each sum is then one of ``a`` times what is said here, and ``n`` of ``a``.
    Source: Sung et al., "RSQ: Learning from Important Tokens Leads to Better Quantized LLMs" (2025).

    Attributes:
        n: rows seen.
        sum_p: (groups, in_features), of x_p.
        sum_d: (groups, in_features), of x_d.
        H: (groups, in_features, in_features), of x_p x_p^T.
        G: (groups, in_features, in_features), of x_d x_p^T; None while all x_d that were added were x_p: then
            it is H. Who adds x_p for x_d, and ``W (x_d - x_p) + r`` for r, gets the same targets and biases
            without it.
        sum_r: layer name -> (groups, out_features), of r.
        R: layer name -> (groups, out_features, in_features), of r x_p^T.
        outputs: layer name -> what is known of its outputs in the dense model.
        spreads: how much H varies from sample to sample.
    """

    n: float
    sum_p: Sums
    sum_d: Sums
    H: Sums
    G: Sums | None = None
    sum_r: dict[str, Sums] = field(default_factory=dict)
    R: dict[str, Sums] = field(default_factory=dict)
    outputs: dict[str, Outputs] = field(default_factory=dict)
    spreads: list[Spread] = field(default_factory=list)
    # Whether centred -> rows seen then, H and G per row: layers that share the sums share these too
    _per_row: dict[bool, tuple[float, Sums, Sums]] = field(default_factory=dict, repr=False, compare=False)
    _noise: tuple[float, float] | None = field(
        default=None, repr=False, compare=False
    )  # rows seen then, share
    _far: bool = field(default=False, repr=False, compare=False)  # the last rows were far from zero

    @classmethod
    def zeros(cls, groups: int, features: int) -> Moments:
        """Return empty sums."""
        vector = np.zeros((groups, features))
        return cls(0, vector, vector.copy(), np.zeros((groups, features, features)))

    @classmethod
    def like(cls, other: Moments) -> Moments:
        """Return empty sums for the same kind of rows as ``other``."""
        return cls.zeros(*other.sum_p.shape)

    def add(
        self, dense: Floats, pruned: Floats, counts: Sequence[int] = (), weights: Floats | None = None
    ) -> None:
        """Add rows (groups, rows, in_features); pass the same array twice when the streams are equal.

        Args:
            dense: x_d.
            pruned: x_p.
            counts: rows of each sample, one after the other; nothing when that is not known.
            weights: (rows,) how often each row counts, 0 or more; None: once.
        """
        n = _count(dense, weights)
        self.n += n
        sum_p = _sum(pruned, weights)
        sum_d = sum_p if dense is pruned else _sum(dense, weights)
        self.sum_p += sum_p
        self.sum_d += sum_d
        with np.errstate(over="ignore", invalid="ignore"):  # seen by whoever reads the sums
            if len(counts):
                if not self.spreads:
                    self.spreads.append(Spread(pruned))
                self.spreads[0].add(pruned, counts, weights)
            H = _product(pruned, pruned, weights)
            means = sum_p**2 / (n or 1)
            varies = np.einsum("gii->g", H) - means.sum(1)
            # One feature is enough: rounding of its square must stay below the ridge, a share of the mean.
            self._far = bool((varies * _FAR < means.max(1) * means.shape[1]).any())
            if self._far:
                H = _exact_product(pruned, pruned, weights)
            if dense is not pruned and self.G is None:
                self.G = self.H.copy()
            if self.G is not None:
                product = _exact_product if self._far else _product
                self.G += H if dense is pruned else product(dense, pruned, weights)
            self.H += H

    def add_residual(
        self, name: str, difference: Floats, pruned: Floats, weights: Floats | None = None
    ) -> None:
        """Add ``r`` (groups, rows, out_features) of layer ``name`` for the rows given to :meth:`add`."""
        self.sum_r[name] = self.sum_r.get(name, 0.0) + _sum(difference, weights)
        with np.errstate(over="ignore", invalid="ignore"):
            R = (_exact_product if self._far else _product)(difference, pruned, weights)
        self.R[name] = self.R.get(name, 0.0) + R

    def add_outputs(self, name: str, dense: Floats, W: Floats, weights: Floats | None = None) -> None:
        """Add what layer ``name`` with weight ``W`` (groups, out_features, in_features) makes of x_d."""
        sums: Sums = dense.sum(1, keepdims=True, dtype=np.float64)
        mean = (sums / max(dense.shape[1], 1)).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            deviations = multiply(dense - mean, W.swapaxes(1, 2))
            seen = Outputs.of(deviations, (W @ mean.swapaxes(1, 2))[:, :, 0], weights)
        self.outputs[name] = self.outputs[name] + seen if name in self.outputs else seen

    def not_finite(self) -> str | None:
        """Return where a sum is infinite or NaN: a layer's name (its outputs), "" (the inputs), or None."""
        if not (np.isfinite(self.H).all() and (self.G is None or np.isfinite(self.G).all())):
            return ""
        return next((name for name, R in self.R.items() if not np.isfinite(R).all()), None)

    def __add__(self, other: Moments) -> Moments:
        """Merge two shards."""
        names = sorted(self.R.keys() | other.R.keys())
        moved = self.G is not None or other.G is not None
        return Moments(
            self.n + other.n,
            self.sum_p + other.sum_p,
            self.sum_d + other.sum_d,
            self.H + other.H,
            _or(self.G, self.H) + _or(other.G, other.H) if moved else None,
            {name: _plus(self.sum_r.get(name), other.sum_r.get(name)) for name in names},
            {name: _plus(self.R.get(name), other.R.get(name)) for name in names},
            # of one part only, it would be held against the variance of other rows
            {
                name: seen + other.outputs[name]
                for name, seen in self.outputs.items()
                if name in other.outputs
            },
            _merged([*self.spreads, *other.spreads]),
        )

    def variance(self) -> Sums:
        """Return the sum over the features of the variance of x_p: (groups,)."""
        n = self.n or 1
        trace: Sums = np.einsum("gii->g", self.H) / n
        left: Sums = np.maximum(trace - ((self.sum_p / n) ** 2).sum(1), 0.0)
        return left

    def uncertainty(self) -> float:
        """Return the share of noise in the covariance of x_p, 0 to below 1: ``E ||S - C||^2 / ||S||^2``.

        S is what the samples show, C what all possible data would; Frobenius norms, the median over the
        groups; 0 when nothing is known of the samples. Source: Ledoit & Wolf, "A well-conditioned estimator
        for large-dimensional covariance matrices" (2004), who divide by ``||S - m I||^2``, which is the same
        for the covariances of networks and less for even ones, where no ridge is needed.
        """
        if self._noise is None or self._noise[0] != self.n:
            self._noise = (self.n, self._uncertainty())
        return self._noise[1]

    def _uncertainty(self) -> float:
        n = self.n or 1
        noise = sum((spread.noise() for spread in self.spreads), np.zeros(len(self.H))) / n**2
        mean = self.sum_p / n
        along = np.einsum("gi,gij,gj->g", mean, self.H, mean, optimize=True) / n
        square = np.einsum("gij,gij->g", self.H, self.H) / n**2 - 2 * along + (mean**2).sum(1) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.nan_to_num(noise / square, nan=0.0, posinf=0.0, neginf=0.0)
        return float(np.median(np.clip(shares, 0.0, MOST_NOISE)))

    def centred(self, name: str, centre: bool) -> tuple[Sums, Sums, Sums | None]:
        """Return H, G and R of layer ``name`` per row, without the means when ``centre``.

        A layer with a bias need only reproduce the deviations from the mean: the bias does the rest. H and G
        are shared by all who ask: not to be written to.
        """
        n = self.n or 1
        if centre not in self._per_row or self._per_row[centre][0] != self.n:
            self._per_row[centre] = (self.n, *self._second_moments(centre))
        _, H, G = self._per_row[centre]
        R = self.R.get(name)
        R = None if R is None else R / n
        if centre and R is not None:
            R -= (self.sum_r[name] / n)[:, :, None] * (self.sum_p / n)[:, None, :]
        return H, G, R

    def _second_moments(self, centre: bool) -> tuple[Sums, Sums]:
        n = self.n or 1
        H = self.H / n
        # What does not vary leaves rounding errors of either sign; a ridge above them keeps W there.
        ridge = _ROUNDING * np.einsum("gii->g", H)[:, None] / H.shape[1]
        mean_p, mean_d = self.sum_p / n, self.sum_d / n

        def centred(sums: Sums, mean: Sums) -> Sums:
            sums -= mean[:, :, None] * mean_p[:, None, :]
            np.einsum("gii->gi", sums)[:] += ridge
            return sums

        if self.G is None:
            H = centred(H, mean_p) if centre else H
            return H, H
        G = self.G / n
        return (centred(H, mean_p), centred(G, mean_d)) if centre else (H, G)


def _merged(spreads: Sequence[Spread]) -> list[Spread]:
    """Add those that have a centre in common."""
    found: list[Spread] = []
    for spread in spreads:
        same = [k for k, held in enumerate(found) if np.array_equal(held.centre, spread.centre)]
        if same:
            found[same[0]] = found[same[0]] + spread
        else:
            found.append(spread)
    return found


def _or(a: Sums | None, b: Sums) -> Sums:
    return b if a is None else a


def _plus(a: Sums | None, b: Sums | None) -> Sums:
    """Add two sums, either of which may be missing."""
    if a is None or b is None:
        found = a if b is None else b
        assert found is not None  # the name came from one of the two
        return found
    return a + b


def _count(x: Floats, weights: Floats | None) -> float:
    return x.shape[1] if weights is None else float(weights.sum(dtype=np.float64))


def _sum(x: NDArray[np.floating], weights: Floats | None) -> Sums:
    """Return the sum over the rows of ``x`` (groups, rows, features): (groups, features)."""
    if weights is None:
        return np.asarray(x.sum(1, dtype=np.float64))
    return np.asarray(weights.astype(np.float64) @ x)


def _product(x: Floats, y: Floats, weights: Floats | None = None) -> Sums:
    """Return ``sum x y^T`` (groups, features of x, features of y)."""
    if weights is not None:  # halves of the weights on both sides, so that x = y stays so
        root = np.sqrt(weights)[:, None]
        x, y = (x * root, y * root) if x is not y else (x * root,) * 2

    def part(rows: slice) -> Floats:  # with x = y, numpy computes half of the matrix only
        piece: Floats = x[:, rows].swapaxes(1, 2) @ y[:, rows]
        return piece

    rows = split(x.shape[1]) if x.size * y.shape[2] > LEAST else [slice(None)]
    product: Sums = np.zeros((x.shape[0], x.shape[2], y.shape[2]))
    for piece in map_threads(part, rows):
        product += piece
    return product


def _exact_product(x: Floats, y: Floats, weights: Floats | None = None) -> Sums:
    """Return ``sum x y^T``: float32 products of the deviations from the means, float64 for the rest."""
    n, sum_x, sum_y = _count(x, weights), _sum(x, weights), _sum(y, weights)
    a, b = ((total / (n or 1)).astype(np.float32) for total in (sum_x, sum_y))
    deviations = _product(x - a[:, None, :], y - b[:, None, :], weights)
    a, b = a.astype(np.float64), b.astype(np.float64)
    product: Sums = sum_x[:, :, None] * b[:, None, :] + a[:, :, None] * (sum_y - n * b)[:, None, :]
    product += deviations
    return product
