"""How much the second moments of a layer's inputs vary from sample to sample.

The rows of one sample (places of an image, tokens of a text) are alike, so the unit is the sample. What is
needed is ``sum ||A_i - n_i / n A||^2`` over samples ``i`` with the scatter matrices ``A_i``; to hold, or only
compute, each of them would cost more than all else. Products with a few random vectors v tell the same, since
``E ||M v||^2 = ||M||_F^2`` for normal v.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]
PROBES = 8


class Spread:
    """Sums over samples.

    Args:
        rows: (groups, rows, features), the first ones: their mean is what scatter is measured around.
    """

    def __init__(self, rows: Floats) -> None:
        groups, _, features = rows.shape
        self.centre: Floats = rows.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        rng = np.random.default_rng(features)
        self.probes: Floats = rng.standard_normal((features, PROBES), dtype=np.float32)
        self.total: Sums = np.zeros((groups, features, PROBES))  # sum of A_i v
        self.squares: Sums = np.zeros((groups, PROBES))  # sum of ||A_i v||^2
        self.rows = 0
        self.squared_rows = 0  # sum of n_i^2

    def empty(self) -> Spread:
        """Return a spread without samples around the same centre; it adds to this one."""
        return Spread(self.centre)

    def __add__(self, other: Spread) -> Spread:
        """Merge two shards around one centre.

        Raises:
            ValueError: when their centres differ.
        """
        if not np.array_equal(self.centre, other.centre):
            raise ValueError("spreads around different centres do not add")
        both = self.empty()
        both.total, both.squares = self.total + other.total, self.squares + other.squares
        both.rows = self.rows + other.rows
        both.squared_rows = self.squared_rows + other.squared_rows
        return both

    def add(self, rows: Floats, counts: Sequence[int], weights: Floats | None = None) -> None:
        """Add samples one after the other: ``counts[i]`` of the ``rows`` (groups, rows, features) each.

        Rows with ``weights`` (rows,) enter the scatter so many times; samples weigh what they have in rows.
        """
        sizes = np.asarray(counts)
        if int(sizes.sum()) != rows.shape[1]:
            raise ValueError(f"samples of {int(sizes.sum())} rows in all, there are {rows.shape[1]}")
        self.rows += rows.shape[1]
        self.squared_rows += int((sizes.astype(np.int64) ** 2).sum())
        y = rows - self.centre
        if weights is not None:
            y *= np.sqrt(weights)[:, None]
        if (sizes == sizes[0]).all():
            self._add(y.reshape(rows.shape[0], len(sizes), sizes[0], -1))
            return
        first = 0
        for alike in np.split(sizes, np.flatnonzero(np.diff(sizes)) + 1):  # samples come bucketed by length
            end = first + int(alike.sum())
            self._add(y[:, first:end].reshape(rows.shape[0], len(alike), alike[0], -1))
            first = end

    def _add(self, y: Floats) -> None:
        """Add centred samples (groups, samples, rows of each, features)."""
        products = np.matmul(y.swapaxes(2, 3), y @ self.probes)  # (groups, samples, features, probes)
        self.total += products.sum(1, dtype=np.float64)
        self.squares += np.einsum("gspv,gspv->gv", products, products, dtype=np.float64)

    def noise(self) -> Sums:
        """Return the expected ``||A - E A||_F^2`` of the sum A over the samples: (groups,); 0 for one."""
        share = self.squared_rows / max(self.rows, 1) ** 2  # 1 / number, if all have the same
        if share >= 1:
            return np.zeros(len(self.squares))
        found: Sums = (self.squares - share * (self.total**2).sum(1)).mean(1) / (1 - share)
        return np.maximum(found, 0.0)
