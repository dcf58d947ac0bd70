"""Sparsity patterns: which sets of weights may be zero together, and exact masks from saliencies.

Counts, not thresholds: a mask has exactly the wanted number of zeros, ties go to the lower index.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.solvers.groups import row_order

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pattern:
    """A sparsity pattern over a matrix ``(groups, out_features, in_features)``.

    Attributes:
        kind: "unstructured"; "nm": at most ``rows`` nonzeros in each ``columns`` neighbouring input
            features of an output row (N:M); "block": ``rows`` output rows x ``columns`` input columns;
            "rows": whole output rows first, for ``share`` of the zeros, then single weights of the others.
        rows: N or R.
        columns: M or C.
        free: of blocks: any rows of a group (of a grouped convolution) may form a block, not only
            neighbours. In one matrix they are the same rows in every column, so all of their columns agree.
        share: of "rows": 1 for whole rows only.
    """

    kind: Literal["unstructured", "nm", "block", "rows"] = "unstructured"
    rows: int = 1
    columns: int = 1
    free: bool = False
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``unstructured``, ``N:M`` (0 < N < M), ``block:RxC`` (R, C >= 1) or ``block:RxC,adjacent``.

        Also ``neuron`` (whole rows) and ``hybrid`` or ``hybrid:S`` (whole rows for a share S of the zeros,
        0 < S < 1, default a half).

        Raises:
            UsageError: for anything else.
        """
        if text == "unstructured":
            return cls()
        if (match := re.fullmatch(r"(\d+):(\d+)", text)) and 0 < int(match[1]) < int(match[2]):
            return cls("nm", int(match[1]), int(match[2]))
        if (match := re.fullmatch(r"block:(\d+)x(\d+)(,adjacent)?", text)) and int(match[1]) * int(
            match[2]
        ) > 0:
            rows = int(match[1])
            return cls("block", rows, int(match[2]), free=rows > 1 and not match[3])
        if text == "neuron":
            return cls("rows", share=1.0)
        if (match := re.fullmatch(r"hybrid(?::(0?\.\d+))?", text)) and float(match[1] or 0.5) > 0:
            return cls("rows", share=float(match[1] or 0.5))
        raise UsageError(
            f"pattern is {text!r}, wanted unstructured, N:M, block:RxC[,adjacent], neuron or hybrid[:S]"
        )

    def __str__(self) -> str:
        """Return what :meth:`parse` reads."""
        if self.kind == "unstructured":
            return self.kind
        if self.kind == "nm":
            return f"{self.rows}:{self.columns}"
        if self.kind == "rows":
            return "neuron" if self.share == 1 else f"hybrid:{self.share:.6f}".rstrip("0")
        return f"block:{self.rows}x{self.columns}" + ("" if self.free or self.rows == 1 else ",adjacent")

    @property
    def adjacent(self) -> Pattern:
        """The same pattern with blocks of neighbouring rows."""
        return replace(self, free=False)

    def zeros(self, shape: tuple[int, ...], sparsity: float) -> int:
        """Return the number of zeros nearest to ``sparsity`` that a mask of ``shape`` can have.

        N:M is all or nothing: a sparsity above zero means every complete group of M.
        """
        groups, rows, columns = shape
        if self.kind == "nm":
            full = groups * rows * (columns // self.columns) * (self.columns - self.rows)
            return full if sparsity > 0 else 0
        total = groups * rows * columns
        return round(sparsity * total)

    def keep(self, saliency: NDArray[np.floating], zeros: int) -> Mask:
        """Return the mask (True = keep) that drops the least salient weights.

        Args:
            saliency: (groups, out_features, in_features), not negative, no NaN.
            zeros: weights to drop. Blocks and whole rows come whole, so the count is reached to within
                half of one; N:M drops the same number whenever ``zeros`` is not 0. Of rows, one is kept
                unless all weights are to go.
        """
        if zeros <= 0:
            return np.ones(saliency.shape, dtype=bool)
        if self.kind == "nm":
            return self._keep_nm(saliency)
        if self.free:
            order = self.row_order(saliency, zeros)[:, :, None]
            mask = np.empty(saliency.shape, dtype=bool)
            ordered = np.take_along_axis(saliency, order, 1)
            np.put_along_axis(mask, order, self._keep_blocks(ordered, zeros), 1)
            return mask
        if self.kind == "block":
            return self._keep_blocks(saliency, zeros)
        if self.kind == "rows":
            return self._keep_rows(saliency, zeros)
        return ~lowest(saliency, zeros)

    def row_order(self, saliency: NDArray[np.floating], zeros: int) -> NDArray[np.int64]:
        """Return the order (groups, out_features) that makes neighbours of the rows of a block.

        Solvers that iterate choose it once: what they prune next depends on what they pruned before.
        """
        return row_order(saliency, self.rows, self.columns, zeros)

    def _keep_nm(self, saliency: NDArray[np.floating]) -> Mask:
        groups, rows, columns = saliency.shape
        whole = columns // self.columns * self.columns  # an incomplete last group stays dense
        parts = saliency[:, :, :whole].reshape(groups, rows, -1, self.columns)
        order = np.argsort(parts, axis=-1, kind="stable")
        keep = np.ones(parts.shape, dtype=bool)
        np.put_along_axis(keep, order[..., : self.columns - self.rows], False, axis=-1)
        mask = np.ones(saliency.shape, dtype=bool)
        mask[:, :, :whole] = keep.reshape(groups, rows, whole)
        return mask

    def _keep_rows(self, saliency: NDArray[np.floating], zeros: int) -> Mask:
        groups, rows, columns = saliency.shape
        count = int(self.share * zeros / columns + (0.5 if self.share == 1 else 0.0))
        if zeros < saliency.size:
            count = min(count, groups * rows - 1)
        gone = lowest(saliency.sum(axis=2, dtype=np.float64), count)
        mask = np.repeat(~gone[:, :, None], columns, axis=2)
        if self.share < 1:
            mask[mask] = ~lowest(saliency[mask], zeros - count * columns)
        return mask

    def _keep_blocks(self, saliency: NDArray[np.floating], zeros: int) -> Mask:
        groups, rows, columns = saliency.shape
        high, wide = -(-rows // self.rows), -(-columns // self.columns)
        if rows % self.rows == 0 and columns % self.columns == 0:
            parts = saliency.reshape(groups, high, self.rows, wide, self.columns)
            each = self.rows * self.columns
            whole = ~lowest(parts.sum(axis=(2, 4)), (2 * zeros + each) // (2 * each))
            return np.repeat(np.repeat(whole, self.rows, 1), self.columns, 2)
        padded = np.zeros((groups, high * self.rows, wide * self.columns), dtype=saliency.dtype)
        padded[:, :rows, :columns] = saliency
        shape = (groups, high, self.rows, wide, self.columns)
        score = padded.reshape(shape).sum(axis=(2, 4))
        size = np.zeros_like(padded, dtype=np.int64)
        size[:, :rows, :columns] = 1
        sizes = size.reshape(shape).sum(axis=(2, 4))
        # Blocks at the edges are smaller: rank by saliency per weight, stop at the nearest count.
        order = np.argsort((score / sizes).ravel(), kind="stable")
        total = np.cumsum(sizes.ravel()[order])
        after = int(np.searchsorted(total, zeros))
        if after < len(total) and (total[after] - zeros) <= zeros - (total[after - 1] if after else 0):
            after += 1
        keep = np.ones(order.size, dtype=bool)
        keep[order[:after]] = False
        full = np.repeat(np.repeat(keep.reshape(groups, high, wide), self.rows, 1), self.columns, 2)
        return np.ascontiguousarray(full[:, :rows, :columns])

    def holds(self, mask: Mask) -> bool:
        """True when ``mask`` obeys the pattern."""
        groups, rows, columns = mask.shape
        if self.kind == "nm":
            whole = columns // self.columns * self.columns
            parts = mask[:, :, :whole].reshape(groups, rows, -1, self.columns)
            return bool((parts.sum(-1) <= self.rows).all())
        if self.free:
            return all(self._rows_agree(part) for part in mask)
        if self.kind == "block":
            corner = mask[:, :: self.rows, :: self.columns]
            full = np.repeat(np.repeat(corner, self.rows, 1), self.columns, 2)[:, :rows, :columns]
            return bool((full == mask).all())
        if self.kind == "rows" and self.share == 1:
            return bool((mask.all(axis=2) | ~mask.any(axis=2)).all())
        return True

    def _rows_agree(self, mask: Mask) -> bool:
        """True when the rows (out_features, in_features) form blocks: all but a last one R rows high."""
        corner = mask[:, :: self.columns]
        if not (np.repeat(corner, self.columns, 1)[:, : mask.shape[1]] == mask).all():
            return False
        _, counts = np.unique(np.packbits(corner, axis=1), axis=0, return_counts=True)
        return int((counts % self.rows > 0).sum()) <= 1


def lowest(score: NDArray[np.floating], count: int) -> Mask:
    """Return a mask of exactly the ``count`` lowest scores; of equal ones, those of lower index."""
    flat = score.ravel()
    if count <= 0:
        return np.zeros(score.shape, dtype=bool)
    if count >= flat.size:
        return np.ones(score.shape, dtype=bool)
    threshold = np.partition(flat, count - 1)[count - 1]
    chosen = flat < threshold
    ties = np.flatnonzero(flat == threshold)
    chosen[ties[: count - int(chosen.sum())]] = True
    return np.asarray(chosen.reshape(score.shape))
