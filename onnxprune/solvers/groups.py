"""Which output rows share a block: balanced clustering by the agreement of their saliencies.

A block of R rows x 1 column keeps all of its weights or none, so rows should want the same columns. The
sparse kernels write any row, so those of a block need not be neighbours: 5 % less layer error on MiniLM with
4x1 at 70 %, in every layer. Rows are paired by a matching of large weight, pairs are paired again, and so on.
(Moving single rows between the blocks afterwards was worth 0.2 % of the saliency at 16 x 1, nothing below.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Index = NDArray[np.int64]

LARGEST = 4096  # rows that are compared with each other; the work grows with their square
_RANK = 2  # terms of the gain of a pair, a function of two saliencies
_ANCHORS = 24
_ROUNDS = 4  # of exchanges at most


def row_order(saliency: NDArray[np.floating], rows: int, columns: int, zeros: int) -> Index:
    """Return the order of rows under which the rows of a block are neighbours: (groups, out_features).

    Rows that are left over when R does not divide their number come last. The blocks found are never worse
    than those of neighbouring rows: they hold at least as much saliency when ``zeros`` weights are dropped.

    Args:
        saliency: (groups, out_features, in_features), not negative.
        rows: R, of a block.
        columns: C, neighbouring columns of a block.
        zeros: weights to drop.
    """
    groups, height, width = saliency.shape
    order = np.tile(np.arange(height), (groups, 1))
    if rows <= 1 or height <= rows or zeros <= 0:
        return order
    share = min(zeros / saliency.size, 1.0)
    starts = np.arange(0, width, columns)
    for group in range(groups):
        energy = np.add.reduceat(saliency[group], starts, axis=1, dtype=np.float32)
        order[group] = _order(energy, rows, share)
    return order


def _order(energy: Floats, rows: int, share: float) -> Index:
    height = len(energy)
    # A scale for float32, and an end to infinities.
    scale = float(energy.mean(dtype=np.float64))
    if not 0 < scale < np.inf:
        return np.arange(height)
    energy = np.minimum(energy / np.float32(scale), np.float32(1e6))
    order = np.arange(height)
    whole = height // rows * rows
    # Large tables: rows of similar size are compared with each other only.
    if height > LARGEST:
        order = np.argsort(energy.sum(1), kind="stable")[::-1].copy()
    for start in range(0, whole, LARGEST // rows * rows):
        part = order[start : min(start + LARGEST // rows * rows, whole)]
        if len(part) > rows:
            part[:] = part[_cluster(energy[part], rows, share).ravel()]
    found, neighbours = (_retained(energy[o[:whole]], rows, share) for o in (order, np.arange(height)))
    return order if found > neighbours else np.arange(height)


def _retained(energy: Floats, rows: int, share: float) -> float:
    """Return the saliency that blocks of neighbouring rows hold when ``share`` of them is dropped."""
    sums = energy.reshape(-1, rows, energy.shape[1]).sum(1).ravel()
    gone = min(round(share * sums.size), sums.size)
    return float(np.partition(sums, gone)[gone:].sum(dtype=np.float64)) if gone < sums.size else 0.0


def _cluster(energy: Floats, rows: int, share: float) -> Index:
    """Return clusters (height / rows, rows) of row numbers; ``rows`` divides the height."""
    height = len(energy)
    price = _threshold(energy, share)
    clusters = np.arange(height)[:, None]
    sums = energy
    while rows % (2 * clusters.shape[1]) == 0:
        gain = _gains(sums, price * 2 * clusters.shape[1])
        pairs = _match(gain)
        clusters = clusters[pairs].reshape(len(pairs), -1)
        sums = sums[pairs].sum(1)
    odd = rows // clusters.shape[1]
    if odd > 1:
        clusters = clusters[_gather(_gains(sums, price * 2 * clusters.shape[1]), odd)].reshape(-1, rows)
    return clusters


def _threshold(sums: Floats, share: float) -> float:
    rank = min(round(share * sums.size), sums.size - 1)
    return float(np.partition(sums, rank, axis=None)[rank])


def _gains(sums: Floats, price: float) -> Floats:
    """Return about ``sum_j max(a_j + b_j - price, 0)`` for each two rows a and b, less their means: (n, n).

    The function of two numbers is interpolated between a few anchors, where it is a small matrix; the
    largest terms of that matrix make the whole a product of two matrices.
    """
    top = max(float(np.quantile(sums[:: max(1, len(sums) // 64)], 0.98)), 1.5 * price)
    anchors = np.unique(np.concatenate([np.linspace(0, 1.25 * price, _ANCHORS), [top]])).astype(np.float32)
    table = np.maximum(anchors[:, None] + anchors[None] - price, 0)
    values, vectors = np.linalg.eigh(table)
    terms = np.argsort(-np.abs(values))[:_RANK]
    left = [np.interp(sums, anchors, vectors[:, term]).astype(np.float32) for term in terms]
    gain = np.zeros((len(sums), len(sums)), np.float32)
    for term, part in zip(terms, left, strict=True):
        gain += (part * np.float32(values[term])) @ part.T
    # Every row gets into one block, so what it gains with any other only misleads a greedy choice.
    mean = gain.mean(1)
    gain -= mean[:, None]
    gain -= mean[None]
    return gain


def _gather(gain: Floats, size: int) -> Index:
    """Return disjoint sets (n / size, size): a row and those that gain most with it, one after the other."""
    left, found = np.arange(len(gain)), []
    while len(left):
        others = left[1:]
        best = np.argsort(-gain[left[0], others], kind="stable")[: size - 1]
        found.append([left[0], *others[best]])
        left = np.delete(others, best)
    return np.array(found)


def _match(gain: Floats) -> Index:
    """Return disjoint pairs (n / 2, 2) with a large sum of ``gain`` (n, n), symmetric; n is even."""
    np.fill_diagonal(gain, -np.inf)
    pairs = _handshake(gain)
    for _ in range(_ROUNDS):
        if not _exchange(gain, pairs):
            break
    return pairs


def _handshake(gain: Floats) -> Index:
    """Pair rows that are each other's best, again and again among those left: the greedy matching."""
    left = np.arange(len(gain))
    found = []
    while len(left):
        part = gain[np.ix_(left, left)] if len(left) < len(gain) else gain
        best = part.argmax(1)
        mutual = np.flatnonzero(best[best] == np.arange(len(left)))
        mutual = mutual[mutual < best[mutual]]
        if not len(mutual):  # a circle of equals
            found.append(left.reshape(-1, 2))
            break
        found.append(np.stack([left[mutual], left[best[mutual]]], 1))
        free = np.ones(len(left), dtype=bool)
        free[mutual] = free[best[mutual]] = False
        left = left[free]
    return np.concatenate(found)


def _exchange(gain: Floats, pairs: Index) -> bool:
    """Let pairs exchange partners where that raises the sum of gains; False when none does."""
    a, b = pairs.T
    now = gain[a, b]
    straight = gain[np.ix_(a, a)] + gain[np.ix_(b, b)]
    crossed = gain[np.ix_(a, b)]
    crossed = crossed + crossed.T
    better = np.maximum(straight, crossed) - now[:, None] - now[None]
    np.fill_diagonal(better, 0)
    partner = better.argmax(1)
    value = better[np.arange(len(pairs)), partner]
    free = np.ones(len(pairs), dtype=bool)
    changed, tiny = False, 1e-5 * float(np.abs(now).mean())
    for p in np.argsort(-value, kind="stable"):
        q = partner[p]
        if value[p] <= tiny:
            break
        if free[p] and free[q]:
            free[p] = free[q] = False
            changed = True
            (x, y), (u, v) = pairs[p].copy(), pairs[q].copy()
            pairs[p], pairs[q] = ((x, u), (y, v)) if straight[p, q] >= crossed[p, q] else ((x, v), (y, u))
    return changed
