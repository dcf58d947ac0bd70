"""Statistics of a layer's inputs, kept as sums: shards add exactly.

``x_d`` is a row of the dense model's input to the layer, ``x_p`` the same row in the pruned model, and
``r`` what the dense residual branch has more than the pruned one at that place: the layer is asked to
produce ``W x_d + r`` from ``x_p``, so that errors of earlier layers do not pile up along the branch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]

_ROUNDING = 1e-12  # variance that float32 activations have from rounding alone, relative to their mean square


@dataclass
class Moments:
    """Sums over rows for layers that share one input.

    Attributes:
        n: rows seen.
        sum_p: (groups, in_features), of x_p.
        sum_d: (groups, in_features), of x_d.
        H: (groups, in_features, in_features), of x_p x_p^T.
        G: (groups, in_features, in_features), of x_d x_p^T.
        sum_r: layer name -> (groups, out_features), of r.
        R: layer name -> (groups, out_features, in_features), of r x_p^T.
    """

    n: int
    sum_p: Sums
    sum_d: Sums
    H: Sums
    G: Sums
    sum_r: dict[str, Sums] = field(default_factory=dict)
    R: dict[str, Sums] = field(default_factory=dict)

    @classmethod
    def zeros(cls, groups: int, features: int) -> Moments:
        """Return empty sums."""
        vector, square = np.zeros((groups, features)), np.zeros((groups, features, features))
        return cls(0, vector, vector.copy(), square, square.copy())

    @classmethod
    def like(cls, other: Moments) -> Moments:
        """Return empty sums for the same kind of rows as ``other``."""
        return cls.zeros(other.sum_p.shape[0], other.sum_p.shape[1])

    def add(self, dense: Floats, pruned: Floats) -> None:
        """Add rows (groups, rows, in_features); pass the same array twice when the streams are equal."""
        n = dense.shape[1]
        self.n += n
        sum_p = pruned.sum(1, dtype=np.float64)
        sum_d = sum_p if dense is pruned else dense.sum(1, dtype=np.float64)
        self.sum_p += sum_p
        self.sum_d += sum_d
        with np.errstate(over="ignore", invalid="ignore"):  # seen by whoever reads the sums
            # float32 products of deviations, float64 for the rest: a large mean must not swallow the variance.
            P, c = _deviations(pruned, sum_p)
            H = P.swapaxes(1, 2) @ P + _mean_part(n, c, sum_p, c, sum_p)
            self.H += H
            if dense is not pruned:
                D, d = _deviations(dense, sum_d)
                H = D.swapaxes(1, 2) @ P + _mean_part(n, d, sum_d, c, sum_p)
            self.G += H

    def add_residual(self, name: str, difference: Floats, pruned: Floats) -> None:
        """Add ``r`` (groups, rows, out_features) of layer ``name`` for the rows given to :meth:`add`."""
        total = difference.sum(1, dtype=np.float64)
        P, c = _deviations(pruned, pruned.sum(1, dtype=np.float64))
        R = (difference.swapaxes(1, 2) @ P).astype(np.float64) + total[:, :, None] * c[:, None, :]
        self.sum_r[name] = self.sum_r.get(name, 0.0) + total
        self.R[name] = self.R.get(name, 0.0) + R

    def __add__(self, other: Moments) -> Moments:
        """Merge two shards."""
        names = sorted(self.R.keys() | other.R.keys())
        return Moments(
            self.n + other.n,
            self.sum_p + other.sum_p,
            self.sum_d + other.sum_d,
            self.H + other.H,
            self.G + other.G,
            {name: _plus(self.sum_r.get(name), other.sum_r.get(name)) for name in names},
            {name: _plus(self.R.get(name), other.R.get(name)) for name in names},
        )

    def centred(self, name: str, centre: bool) -> tuple[Sums, Sums, Sums | None]:
        """Return H, G and R of layer ``name`` per row, without the means when ``centre``.

        A layer with a bias need only reproduce the deviations from the mean: the bias does the rest.
        """
        n = max(self.n, 1)
        R = self.R.get(name)
        H, G = self.H / n, self.G / n
        R = None if R is None else R / n
        if centre:
            mean_p, mean_d = self.sum_p / n, self.sum_d / n
            # What does not vary leaves rounding errors of either sign; a ridge above them keeps W there.
            ridge = _ROUNDING * np.einsum("gii->g", H)[:, None, None] / H.shape[1] * np.eye(H.shape[1])
            H = H - mean_p[:, :, None] * mean_p[:, None, :] + ridge
            G = G - mean_d[:, :, None] * mean_p[:, None, :] + ridge
            if R is not None:
                R = R - (self.sum_r[name] / n)[:, :, None] * mean_p[:, None, :]
        return H, G, R


def _plus(a: Sums | None, b: Sums | None) -> Sums:
    """Add two sums, either of which may be missing."""
    if a is None or b is None:
        found = a if b is None else b
        assert found is not None  # the name came from one of the two
        return found
    return a + b


def _deviations(rows: Floats, total: Sums) -> tuple[Floats, Sums]:
    """Return ``rows`` minus their mean, and that mean (groups, features) as it was subtracted."""
    mean = (total / max(rows.shape[1], 1)).astype(np.float32)
    return rows - mean[:, None, :], mean.astype(np.float64)


def _mean_part(n: int, a: Sums, sum_a: Sums, b: Sums, sum_b: Sums) -> Sums:
    """Return what ``sum x y^T`` has more than ``sum (x - a)(y - b)^T``: (groups, features, features)."""
    return sum_a[:, :, None] * b[:, None, :] + a[:, :, None] * (sum_b - n * b)[:, None, :]
