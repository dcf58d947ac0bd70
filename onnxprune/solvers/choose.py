"""From scores to a mask: by rank or by chance, over the layer or row by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.solvers.patterns import Mask, Pattern, lowest


def choose(
    score: NDArray[np.floating],
    zeros: int,
    pattern: Pattern,
    *,
    per_row: bool = False,
    seed: int | None = None,
) -> Mask:
    """Return the mask (True = keep) that drops ``zeros`` weights, as exactly as the pattern can.

    Args:
        score: (groups, out_features, in_features), not negative; higher = keep.
        zeros: weights to drop.
        pattern: of the zeros.
        per_row: without a pattern, drop the same number in every output row.
        seed: keep by chance, see :func:`luck`; None: the highest scores are kept, ties by index.
    """
    if pattern.free and seed is not None:  # luck is shared by a block, so its rows come first
        order = pattern.row_order(score, zeros)[:, :, None]
        mask = choose(np.take_along_axis(score, order, 1), zeros, pattern.adjacent, seed=seed)
        return np.take_along_axis(mask, np.argsort(order, axis=1), 1)
    if seed is not None:
        score = score * luck(score.shape, pattern, seed)
    if per_row and pattern.kind == "unstructured":
        return _keep_per_row(score, zeros)
    return pattern.keep(score, zeros)


def luck(shape: tuple[int, ...], pattern: Pattern, seed: int) -> NDArray[np.float64]:
    """Return random factors of that shape: the highest products score * factor are a sample of the weights.

    They are drawn one after the other without replacement, each with probability in proportion to its score
    among those that are left. Weights that go together (of a block, of a row) have one factor. Source:
    Efraimidis & Spirakis, "Weighted random sampling with a reservoir" (2006); the logarithms are the
    Gumbel-top-k trick of Kool et al. (2019).

    Args:
        shape: (groups, out_features, in_features).
        pattern: of the zeros; blocks of neighbouring rows.
        seed: same seed, same factors.
    """
    groups, rows, columns = shape
    high, wide = (1, columns) if pattern.kind == "rows" else (pattern.rows, pattern.columns)
    if pattern.kind in ("unstructured", "nm"):
        high = wide = 1
    drawn = np.random.default_rng(seed).exponential(size=(groups, -(-rows // high), -(-columns // wide)))
    full = np.repeat(np.repeat(drawn, high, 1), wide, 2)[:, :rows, :columns]
    return np.asarray(1.0 / np.maximum(full, 1e-12))


def among(score: NDArray[np.floating], candidates: Mask) -> NDArray[np.float64]:
    """Return scores in the same order, but with all of ``candidates`` below all of the others."""
    highest = float(score.max(initial=0.0)) or 1.0
    return np.asarray(score / (2.0 * highest) + ~candidates, dtype=np.float64)


def _keep_per_row(score: NDArray[np.floating], zeros: int) -> Mask:
    """Drop the same number in every output row; what does not divide goes to the lowest scores left."""
    groups, rows, columns = score.shape
    each = zeros // (groups * rows)
    order = np.argsort(score, axis=-1, kind="stable")
    mask = np.ones(score.shape, dtype=bool)
    np.put_along_axis(mask, order[..., :each], False, axis=-1)
    left = zeros - each * groups * rows
    if left and each < columns:
        following = np.take_along_axis(score, order[..., each : each + 1], axis=-1)
        extra = lowest(following, left)
        at = np.argwhere(extra[..., 0])
        mask[at[:, 0], at[:, 1], order[at[:, 0], at[:, 1], each]] = False
    return mask
